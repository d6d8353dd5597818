// Istio's own code as a client and verifier of istio-hsm-ca.
//
//	istio-judge agent     the agent of a sidecar: requests by JWT, rotates, renews by certificate
//	istio-judge ra        istiod as a registration authority, with a Kubernetes CertificateSigningRequest
//	istio-judge plugged   istiod as the CA itself, with the files of a cacerts Secret
//
// All decisions are made by packages of istio.io/istio at the version in go.mod. Each successful step is a line
// of JSON on standard output; the first failure ends the program. Used by tests/kube/istio.rs.
package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher/plugin"
	"istio.io/istio/security/pkg/nodeagent/cache"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/ra"
	"istio.io/istio/security/pkg/pki/util"
)

func main() {
	commands := map[string]func([]string) error{"agent": agent, "ra": registrationAuthority, "plugged": plugged}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: istio-judge agent|ra|plugged FLAGS")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "istio-judge:", err)
		os.Exit(1)
	}
}

// told is a certificate that Istio's code has accepted.
type told struct {
	Step         string `json:"step"`
	Serial       string `json:"serial"`
	Identity     string `json:"identity"`
	Seconds      int64  `json:"seconds"`
	Certificates int    `json:"certificates"`
	Roots        int    `json:"roots"`
}

func agent(arguments []string) error {
	flags := flag.NewFlagSet("agent", flag.ExitOnError)
	var (
		options   security.Options
		roots     = flags.String("roots", "", "the file of roots for the endpoint, as istio-ca-root-cert is mounted")
		token     = flags.String("token", "", "the file of the projected token")
		seconds   = flags.Int64("seconds", 3600, "the validity to ask for")
		rotations = flags.Int("rotations", 0, "how often to wait for a rotation")
	)
	flags.StringVar(&options.CAEndpoint, "endpoint", "", "address of the CA")
	flags.StringVar(&options.CAEndpointSAN, "san", "", "its name")
	flags.StringVar(&options.ClusterID, "cluster", "Kubernetes", "the cluster's id")
	flags.StringVar(&options.TrustDomain, "trust-domain", "cluster.local", "trust domain")
	flags.StringVar(&options.WorkloadNamespace, "namespace", "", "the workload's namespace")
	flags.StringVar(&options.ServiceAccount, "account", "", "the workload's service account")
	flags.StringVar(&options.OutputKeyCertToDir, "out", "", "directory for key, chain and roots")
	flags.StringVar(&options.ECCSigAlg, "ecc", "", "ECDSA instead of RSA")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	options.WorkloadRSAKeySize = 2048
	options.SecretTTL = time.Duration(*seconds) * time.Second
	// Rotate two seconds after each certificate.
	options.SecretRotationGracePeriodRatio = 1 - 2/float64(*seconds)
	identity := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", options.TrustDomain, options.WorkloadNamespace, options.ServiceAccount)

	byToken := options
	byToken.CredFetcher = plugin.CreateTokenPlugin(*token)
	if err := secrets("token", &byToken, &citadel.TLSOptions{RootCert: *roots}, identity, *rotations); err != nil {
		return err
	}
	// Like an agent that has lost its JWT: it has only the previous key and chain.
	file := func(name string) string { return filepath.Join(options.OutputKeyCertToDir, name) }
	own := &citadel.TLSOptions{RootCert: *roots, Key: file("key.pem"), Cert: file("cert-chain.pem")}
	byCertificate := options
	byCertificate.OutputKeyCertToDir = ""
	return secrets("certificate", &byCertificate, own, identity, 0)
}

// secrets lets the agent's secret cache obtain the workload's certificate and its roots, and rotate them.
func secrets(step string, options *security.Options, tls *citadel.TLSOptions, identity string, rotations int) error {
	client, err := citadel.NewCitadelClient(options, tls)
	if err != nil {
		return err
	}
	manager, err := cache.NewSecretManagerClient(client, options)
	if err != nil {
		return err
	}
	defer manager.Close()
	due := make(chan struct{}, 16)
	manager.RegisterSecretHandler(func(resource string) {
		if resource == security.WorkloadKeyCertResourceName {
			due <- struct{}{}
		}
	})
	for rotation := 0; ; rotation++ {
		item, err := manager.GenerateSecret(security.WorkloadKeyCertResourceName)
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		roots, err := manager.GenerateSecret(security.RootCertReqResourceName)
		if err != nil {
			return fmt.Errorf("%s: roots: %w", step, err)
		}
		if err := judged(step, item.PrivateKey, item.CertificateChain, roots.RootCert, identity); err != nil {
			return err
		}
		if rotation == rotations {
			return nil
		}
		select {
		case <-due:
			step = "rotation"
		case <-time.After(30 * time.Second):
			return fmt.Errorf("%s: the agent did not rotate", step)
		}
	}
}

func registrationAuthority(arguments []string) error {
	flags := flag.NewFlagSet("ra", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "of istiod's service account")
	signer := flags.String("signer", "", "the signer's name")
	roots := flags.String("roots", "", "the file of roots, as mounted at ./etc/external-ca-cert/root-cert.pem")
	identity := flags.String("identity", "", "the workload's SPIFFE ID")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	authority, err := ra.NewIstioRA(&ra.IstioRAOptions{
		ExternalCAType: ra.ExtCAK8s,
		DefaultCertTTL: 24 * time.Hour,
		MaxCertTTL:     24 * time.Hour,
		CaCertFile:     *roots,
		CaSigner:       *signer,
		VerifyAppendCA: true,
		K8sClient:      client,
		TrustDomain:    "cluster.local",
	})
	if err != nil {
		return err
	}
	return signed("ra", authority, *identity)
}

func plugged(arguments []string) error {
	flags := flag.NewFlagSet("plugged", flag.ExitOnError)
	directory := flags.String("from", "", "directory with ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem")
	identity := flags.String("identity", "", "the workload's SPIFFE ID")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(*directory, name) }
	options, err := ca.NewPluggedCertIstioCAOptions(ca.SigningCAFileBundle{
		RootCertFile:    file(ca.RootCertFile),
		CertChainFiles:  []string{file(ca.CertChainFile)},
		SigningCertFile: file(ca.CACertFile),
		SigningKeyFile:  file(ca.CAPrivateKeyFile),
	}, time.Hour, 24*time.Hour, 2048)
	if err != nil {
		return err
	}
	authority, err := ca.NewIstioCA(options)
	if err != nil {
		return err
	}
	return signed("plugged", authority, *identity)
}

// signer is istiod's interface for requesting certificates, in both modes.
type signer interface {
	Sign(csrPEM []byte, opts ca.CertOpts) ([]byte, error)
	GetCAKeyCertBundle() *util.KeyCertBundle
}

// signed signs with istiod's CA as its server does for a workload, and verifies the resulting reply.
func signed(step string, authority signer, identity string) error {
	request, key, err := util.GenCSR(util.CertOptions{Host: identity, ECSigAlg: util.EcdsaSigAlg})
	if err != nil {
		return err
	}
	leaf, err := authority.Sign(request, ca.CertOpts{SubjectIDs: []string{identity}, TTL: time.Hour})
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	bundle := authority.GetCAKeyCertBundle()
	return judged(step, key, append(leaf, bundle.GetCertChainPem()...), bundle.GetRootCertPem(), identity)
}

// judged lets Istio verify a key, its chain and the roots, and reports the result.
func judged(step string, key, chain, roots []byte, identity string) error {
	expected := &util.VerifyFields{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		IsCA:        false,
		Host:        identity,
	}
	if err := util.VerifyCertificate(key, chain, roots, expected); err != nil {
		return fmt.Errorf("%s: Istio refuses the certificate: %w\n%s", step, err, chain)
	}
	certificates, err := parsed(chain)
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	anchors, err := parsed(roots)
	if err != nil {
		return fmt.Errorf("%s: roots: %w", step, err)
	}
	leaf := certificates[0]
	line := told{
		Step:         step,
		Serial:       fmt.Sprintf("%x", leaf.SerialNumber),
		Seconds:      int64(time.Until(leaf.NotAfter).Seconds()),
		Certificates: len(certificates),
		Roots:        len(anchors),
	}
	if len(leaf.URIs) == 1 {
		line.Identity = leaf.URIs[0].String()
	}
	return json.NewEncoder(os.Stdout).Encode(line)
}

func parsed(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, certificate)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no certificate")
	}
	return all, nil
}
