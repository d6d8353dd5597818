// Command chain-judges verifies chains with Go's crypto/x509, as Istio's agent and istiod do.
//
// It reads one JSON object a line: {"leaf": PEM, "sent": PEM, "roots": PEM, "crls": PEM}, and prints for each the reason of a
// refusal, or an empty line. Every certificate has to be readable, since Istio's code reads whole files. CRLs are checked as
// istiod checks its ca-crl.pem: each certificate above the leaf has one that it signed.
package main

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
)

type presented struct{ Leaf, Sent, Roots, Crls string }

func certificates(text string) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return found, nil
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		found = append(found, certificate)
	}
}

func refusal(it presented) error {
	leaf, err := certificates(it.Leaf)
	if err != nil {
		return fmt.Errorf("leaf: %w", err)
	}
	if len(leaf) != 1 {
		return fmt.Errorf("%d leaves", len(leaf))
	}
	sent, err := certificates(it.Sent)
	if err != nil {
		return fmt.Errorf("sent: %w", err)
	}
	roots, err := certificates(it.Roots)
	if err != nil {
		return fmt.Errorf("roots: %w", err)
	}
	options := x509.VerifyOptions{Intermediates: x509.NewCertPool(), Roots: x509.NewCertPool()}
	for _, certificate := range sent {
		options.Intermediates.AddCert(certificate)
	}
	for _, certificate := range roots {
		options.Roots.AddCert(certificate)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		options.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf[0].Verify(options); err != nil {
			return err
		}
	}
	if it.Crls == "" {
		return nil
	}
	return revoked(leaf[0], append(sent, roots...), it.Crls)
}

func revoked(leaf *x509.Certificate, issuers []*x509.Certificate, text string) error {
	var lists []*x509.RevocationList
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return err
		}
		lists = append(lists, list)
	}
	for _, issuer := range issuers {
		signed := false
		for _, list := range lists {
			if list.CheckSignatureFrom(issuer) != nil {
				continue
			}
			signed = true
			for _, entry := range list.RevokedCertificateEntries {
				if leaf.CheckSignatureFrom(issuer) == nil && entry.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
					return fmt.Errorf("revoked")
				}
			}
		}
		if !signed {
			return fmt.Errorf("no CRL of %v", issuer.Subject)
		}
	}
	return nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var it presented
		if err := json.Unmarshal(lines.Bytes(), &it); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		reason := ""
		if err := refusal(it); err != nil {
			reason = err.Error()
		}
		fmt.Println(strings.ReplaceAll(reason, "\n", " "))
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
