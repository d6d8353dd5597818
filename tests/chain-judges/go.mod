module istio-hsm-ca/chain-judges

// The decisions of docs/BUNDLES.md follow this version of crypto/x509.
go 1.26.0
