// Command zlint-crl checks CRLs with Go's crypto/x509 and with zlint's lints of CRLs.
//
// Arguments: CA.pem CRL.pem. Prints the number of entries and then each lint that is not passed, one a line.
package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"sort"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

func read(path string) []byte {
	text, err := os.ReadFile(path)
	if err != nil {
		fail(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		fail(fmt.Errorf("%s is not PEM", path))
	}
	return block.Bytes
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func main() {
	ca, err := x509.ParseCertificate(read(os.Args[1]))
	if err != nil {
		fail(err)
	}
	der := read(os.Args[2])
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		fail(err)
	}
	if err := list.CheckSignatureFrom(ca); err != nil {
		fail(err)
	}
	fmt.Println(len(list.RevokedCertificateEntries))
	linted, err := zx509.ParseRevocationList(der)
	if err != nil {
		fail(err)
	}
	results := zlint.LintRevocationList(linted)
	var findings []string
	for name, result := range results.Results {
		if result.Status > lint.Pass {
			findings = append(findings, fmt.Sprintf("%s: %s", name, result.Status))
		}
	}
	sort.Strings(findings)
	for _, finding := range findings {
		fmt.Println(finding)
	}
}
