use std::{
    io::Write,
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

/// Runs openssl with this standard input.
fn openssl(arguments: &str, input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn read(text: &str) -> Result<PrivateKey, PrivateKeyError> {
    PrivateKey::from_pem(text.as_bytes(), None)
}

/// The error; a key has no Debug.
fn refusal(text: &str) -> PrivateKeyError {
    read(text).err().unwrap_or_else(|| panic!("accepted: {text}"))
}

/// A new private key as PKCS#8.
fn new(arguments: &str) -> String {
    openssl(&format!("genpkey -algorithm {arguments}"), b"")
}

fn rsa(bits: u16) -> String {
    new(&format!("RSA -pkeyopt rsa_keygen_bits:{bits}"))
}

fn ec(curve: &str) -> String {
    new(&format!("EC -pkeyopt ec_paramgen_curve:{curve}"))
}

/// The public key computed by openssl.
fn public_half(text: &str) -> PublicKey {
    let block = pem::blocks(openssl("pkey -pubout", text.as_bytes()).as_bytes()).unwrap().remove(0);
    PublicKey::from_spki_der(&block.der).unwrap()
}

#[test]
fn every_form_in_which_operators_have_it() {
    let (rsa, p256, p384, ed25519) = (rsa(2048), ec("P-256"), ec("P-384"), new("ED25519"));
    let sec1 = |text: &str| openssl("ec", text.as_bytes());
    let parameters = |curve: &str| openssl(&format!("ecparam -name {curve}"), b"");
    // OpenSSL omits the curve only in SEC 1 inside PKCS#8; this one relies on the block before it.
    let bare = {
        let block = pem::blocks(p256.as_bytes()).unwrap().remove(0);
        let info = pkcs8::PrivateKeyInfoRef::try_from(block.der.as_slice()).unwrap();
        pem::encode("EC PRIVATE KEY", info.private_key.as_bytes())
    };
    let cases = [
        ("PKCS#1", &rsa, openssl("rsa -traditional", rsa.as_bytes())),
        ("PKCS#8 RSA", &rsa, rsa.clone()),
        ("PKCS#8 with CRLF", &rsa, rsa.replace('\n', "\r\n")),
        ("SEC 1", &p256, sec1(&p256)),
        ("SEC 1 after EC PARAMETERS", &p256, format!("{}{}", parameters("prime256v1"), sec1(&p256))),
        ("SEC 1 by EC PARAMETERS alone", &p256, format!("{}{bare}", parameters("prime256v1"))),
        ("SEC 1 without public half", &p256, openssl("ec -no_public", p256.as_bytes())),
        ("SEC 1 compressed", &p256, openssl("ec -conv_form compressed", p256.as_bytes())),
        ("PKCS#8 P-256", &p256, p256.clone()),
        ("SEC 1 P-384", &p384, sec1(&p384)),
        ("PKCS#8 P-384", &p384, p384.clone()),
        ("PKCS#8 Ed25519", &ed25519, ed25519.clone()),
        ("after its certificate and a remark", &p384, format!("{}my key\n{p384}", pem::encode("CERTIFICATE", &[0]))),
    ];
    for (name, source, text) in cases {
        let key = read(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(*key.public_key(), public_half(source), "{name}");
        assert!(!PrivateKey::needs_passphrase(text.as_bytes()).unwrap(), "{name}");
        let written = pem::encode("PRIVATE KEY", key.pkcs8());
        assert_eq!(public_half(&written), public_half(source), "{name}: openssl reads what was written");
        assert_eq!(*read(&written).unwrap().pkcs8, *key.pkcs8, "{name}: written as it is read");
    }
}

#[test]
fn version_2_of_pkcs8_carries_its_public_half() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let v2 = pair.to_pkcs8().unwrap();
    let key = read(&pem::encode("PRIVATE KEY", v2.as_ref())).unwrap();
    assert_eq!(key.public_key().ec_point(), Some(pair.public_key().as_ref()));
    assert_eq!(key.pkcs8().len(), 48, "not version 1, which more tokens support");
    let mut other = v2.as_ref().to_vec();
    *other.last_mut().unwrap() ^= 1;
    let error = refusal(&pem::encode("PRIVATE KEY", &other));
    assert_eq!(error, PrivateKeyError::Inconsistent("its public half is another key's"));
}

#[test]
fn components_are_the_numbers_that_openssl_sees() {
    let text = rsa(2048);
    let key = read(&text).unwrap();
    let Components::Rsa(rsa) = key.components().unwrap() else { panic!("not RSA") };
    let shown = openssl("pkey -noout -text", text.as_bytes());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let seen: String = shown.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    for (name, number) in [
        ("modulus", rsa.modulus),
        ("privateExponent", rsa.private_exponent),
        ("prime1", rsa.prime1),
        ("prime2", rsa.prime2),
        ("exponent1", rsa.exponent1),
        ("exponent2", rsa.exponent2),
        ("coefficient", rsa.coefficient),
    ] {
        assert!(seen.contains(&hex(number)), "{name}");
    }
    assert_eq!(rsa.public_exponent, [1, 0, 1]);
    for (text, length) in [(ec("P-256"), 32), (ec("P-384"), 48), (new("ED25519"), 32)] {
        let key = read(&text).unwrap();
        let (parameters, secret) = match key.components().unwrap() {
            Components::Ec { parameters, scalar } => (parameters, scalar),
            Components::Ed25519 { parameters, seed } => (parameters, seed),
            Components::Rsa(_) => panic!("RSA"),
        };
        assert_eq!(secret.len(), length);
        assert_eq!(Some(parameters), key.public_key().ec_parameters_der());
        let shown = openssl("pkey -noout -text", text.as_bytes());
        let seen: String = shown.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        assert!(seen.contains(&hex(secret)));
    }
}

#[test]
fn encrypted_keys_need_their_passphrase() {
    let plain = ec("P-256");
    let passphrase = SecretString::from("correct horse");
    let pass = "-passout pass:correct\u{a0}horse";
    let encrypt = |arguments: &str| {
        let arguments = format!("pkcs8 -topk8 {arguments} {pass}");
        let mut child = Command::new("openssl")
            .args(arguments.split(' ').map(|word| word.replace('\u{a0}', " ")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(plain.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    for form in ["-v2 aes-256-cbc", "-v2 aes-128-cbc -iter 10000", "-v2 aes-192-cbc -v2prf hmacWithSHA512", "-scrypt"] {
        let text = encrypt(form);
        let key = PrivateKey::from_pem(text.as_bytes(), Some(&passphrase));
        let key = key.unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(*key.public_key(), public_half(&plain), "{form}");
        assert!(PrivateKey::needs_passphrase(text.as_bytes()).unwrap());
        assert_eq!(refusal(&text), PrivateKeyError::PassphraseNeeded);
    }
    let text = encrypt("-v2 aes-256-cbc -iter 10");
    for number in 0..600 {
        let wrong = SecretString::from(format!("wrong {number}"));
        let error = PrivateKey::from_pem(text.as_bytes(), Some(&wrong)).err().unwrap();
        assert_eq!(error, PrivateKeyError::PassphraseWrong, "with padding that happens to be valid");
    }
    for form in ["-v2 des3", "-v2 aes-256-cbc -v2prf hmacWithSHA1", "-v1 PBE-SHA1-3DES"] {
        let text = encrypt(form);
        let error = PrivateKey::from_pem(text.as_bytes(), Some(&passphrase)).err().unwrap();
        assert!(matches!(error, PrivateKeyError::UnsupportedEncryption(_)), "{form}: {error}");
        let problem = error.in_file("ca-key.pem", text.as_bytes()).to_string();
        assert!(problem.contains("openssl pkcs8 -topk8"), "{problem}");
    }
    let block = pem::blocks(text.as_bytes()).unwrap().remove(0);
    let mut info = pkcs8::EncryptedPrivateKeyInfoRef::try_from(block.der.as_slice()).unwrap();
    for (iterations, expected) in [(0, "out of bounds"), (20_000_001, "out of bounds"), (11, "passphrase is wrong")] {
        let pkcs8::pkcs5::EncryptionScheme::Pbes2(scheme) = &mut info.encryption_algorithm else { panic!("PBES1") };
        let pkcs8::pkcs5::pbes2::Kdf::Pbkdf2(kdf) = &mut scheme.kdf else { panic!("scrypt") };
        kdf.iteration_count = iterations;
        let text = pem::encode("ENCRYPTED PRIVATE KEY", &der::Encode::to_der(&info).unwrap());
        let error = PrivateKey::from_pem(text.as_bytes(), Some(&passphrase)).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn each_refusal_has_its_reason() {
    let (rsa_text, p256) = (rsa(2048), ec("P-256"));
    let der = |text: &str| pem::blocks(text.as_bytes()).unwrap().remove(0).der;
    let damaged = |text: &str, label: &str, from_end: usize| {
        let mut der = der(text).to_vec();
        let at = der.len() - from_end;
        der[at] ^= 1;
        pem::encode(label, &der)
    };
    let pkcs1 = openssl("rsa -traditional", rsa_text.as_bytes());
    let trailing = pem::encode("PRIVATE KEY", &[&der(&p256)[..], &[0; 5]].concat());
    let legacy = openssl("rsa -traditional -aes128 -passout pass:x", rsa_text.as_bytes());
    let openssh = pem::encode("OPENSSH PRIVATE KEY", b"openssh-key-v1");
    let other_curve = format!("{}{}", openssl("ecparam -name secp384r1", b""), openssl("ec", p256.as_bytes()));
    let cases = [
        ("", "is empty; put"),
        ("see the wiki", "no private key in it, but text without a PEM block"),
        (&pem::encode("CERTIFICATE", &[1]), "no private key in it, but a certificate;"),
        (&pem::encode("PUBLIC KEY", &[1]), "no private key in it, but a public key;"),
        (&pem::encode("EC PARAMETERS", &[1]), "no private key in it, but EC PARAMETERS alone"),
        (&pem::encode("PKCS#11 PROVIDER URI", &[1]), "a reference to a key in a token; nothing has to be imported"),
        (&format!("\n{p256}{rsa_text}"), "lines 2 and 7"),
        (&p256[..60], "line 1: the block that begins here has no END line"),
        (&pem::encode("PRIVATE KEY", b"hello"), "malformed"),
        (&pem::encode("RSA PRIVATE KEY", &der(&p256)), "the key is a `PRIVATE KEY` under the label `RSA PRIVATE KEY`"),
        (&pem::encode("ANY PRIVATE KEY", &der(&pkcs1)), "the key is a `RSA PRIVATE KEY` under the label"),
        (&pem::encode("ANY PRIVATE KEY", b"hello"), "a `ANY PRIVATE KEY` is not supported"),
        (&trailing, "malformed"),
        (&damaged(&pkcs1, "RSA PRIVATE KEY", 1), "contradicts itself"),
        (&damaged(&pkcs1, "RSA PRIVATE KEY", 800), "contradicts itself"),
        (&damaged(&p256, "PRIVATE KEY", 1), "contradicts itself"),
        (&damaged(&p256, "PRIVATE KEY", 80), "contradicts itself"),
        (&other_curve, "names two curves"),
        (&legacy, "openssl pkcs8 -topk8"),
        (&openssh, "ssh-keygen"),
        (&rsa(1024), "1024 bits"),
        (&ec("P-521"), "the key is P-521, which is not supported"),
        (&ec("secp256k1"), "the key is secp256k1, which is not supported"),
        (&new("ED448"), "the key is Ed448, which is not supported"),
        (&new("X25519"), "the key is X25519, which is not supported"),
        (&new("RSA-PSS"), "the key is RSASSA-PSS, which is not supported"),
        (&new("EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit"), "param_enc named_curve"),
        (&new("RSA -pkeyopt rsa_keygen_pubexp:3"), "65537"),
        (&new("RSA -pkeyopt rsa_keygen_primes:3 -pkeyopt rsa_keygen_bits:3072"), "two primes"),
    ];
    for (text, expected) in cases {
        let message = refusal(text).in_file("ca-key.pem", text.as_bytes()).to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn a_short_or_padded_scalar_is_brought_to_its_length() {
    let numbers: [&[u8]; 2] = [&[1; 31], &[&[0; 3][..], &[1; 31]].concat()];
    for scalar in numbers {
        let mut key = vec![0x30, 0, 2, 1, 1, 4, u8::try_from(scalar.len()).unwrap()];
        key.extend(scalar);
        key.extend([0xa0, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
        key[1] = u8::try_from(key.len() - 2).unwrap();
        let key = read(&pem::encode("EC PRIVATE KEY", &key)).unwrap();
        let Components::Ec { scalar, .. } = key.components().unwrap() else { panic!("not EC") };
        assert_eq!(scalar, [&[0], &[1; 31][..]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 1..200), form in 0_usize..4) {
        let label = ["RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"][form];
        let passphrase = SecretString::from("x");
        let _ = PrivateKey::from_pem(&bytes, Some(&passphrase));
        let _ = PrivateKey::from_pem(pem::encode(label, &bytes).as_bytes(), Some(&passphrase));
    }
}
