//! The profiles.

use std::time::Duration;

use cryptoki_sys::{
    CKA_ALLOWED_MECHANISMS, CKA_EXTRACTABLE, CKA_ID, CKA_MODIFIABLE, CKA_PRIVATE, CKA_SENSITIVE, CKA_SIGN_RECOVER,
    CKA_TOKEN, CKM_AES_CBC_PAD, CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_PAD, CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA,
    CKM_RSA_AES_KEY_WRAP, CKM_RSA_PKCS_OAEP, CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
    CKO_SECRET_KEY, CKR_ACTION_PROHIBITED, CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_VALUE_INVALID,
    CKR_FUNCTION_FAILED, CKR_FUNCTION_NOT_SUPPORTED, CKR_MECHANISM_INVALID, CKR_TEMPLATE_INCOMPLETE,
    CKR_TEMPLATE_INCONSISTENT,
};

use super::{
    Login,
    Makes::{Copy, Create, Destroy, GenerateKey, GenerateKeyPair, Set, Unwrap, Wrap},
    Profile, Rule, With,
};

/// AWS's AES key wrap with zero padding, which is RFC 5649 (CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD).
const CLOUDHSM_ZERO_PAD: u64 = 0x8000_216f;

const ED25519: &[u64] = &[CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA];

/// SoftHSM itself.
const PLAIN: Profile = Profile {
    name: "softhsm",
    refused: &[],
    rules: &[],
    lacks: &[],
    renamed: &[],
    also_unwraps: &[],
    login: Login::Required,
    sessions: None,
    read_only: None,
    pace: None,
    hangs_at: None,
    idle: None,
    signs_in: None,
    late: None,
    private_keys: None,
    own_ids: false,
    zero_padded: false,
};

const CLOUDHSM_RULES: &[Rule] = &[
    // Annotation 1 of the table of attributes: these must have their default value.
    any(With::Flag(CKA_PRIVATE, false), CKR_ATTRIBUTE_VALUE_INVALID),
    any(With::Flag(CKA_MODIFIABLE, false), CKR_ATTRIBUTE_VALUE_INVALID),
    // Annotation 3: this one must be equal to CKA_SIGN.
    of(CKO_PRIVATE_KEY, With::Flag(CKA_SIGN_RECOVER, false), CKR_TEMPLATE_INCONSISTENT),
    any(With::Attribute(CKA_ALLOWED_MECHANISMS), CKR_ATTRIBUTE_TYPE_INVALID),
    created(CKO_PRIVATE_KEY, CKR_ATTRIBUTE_VALUE_INVALID),
    created(CKO_SECRET_KEY, CKR_ATTRIBUTE_VALUE_INVALID),
    created(CKO_DATA, CKR_ATTRIBUTE_VALUE_INVALID),
    created(CKO_CERTIFICATE, CKR_ATTRIBUTE_VALUE_INVALID),
];

const CLOUDHSM: Profile = Profile {
    name: "cloudhsm",
    refused: &[(Copy, CKR_FUNCTION_NOT_SUPPORTED), (Set, CKR_FUNCTION_NOT_SUPPORTED)],
    rules: CLOUDHSM_RULES,
    lacks: &[ED25519[0], ED25519[1], CKM_AES_KEY_WRAP_PAD],
    renamed: &[(CLOUDHSM_ZERO_PAD, CKM_AES_KEY_WRAP_PAD)],
    read_only: Some(CKR_FUNCTION_FAILED),
    pace: Some(Duration::from_millis(20)),
    late: Some(Duration::from_millis(700)),
    ..PLAIN
};

const NSHIELD: Profile = Profile {
    name: "nshield",
    rules: &[
        // Security assurances: `tokenkeys`, `explicitness`, `import`.
        of(CKO_PRIVATE_KEY, With::Flag(CKA_SENSITIVE, false), CKR_TEMPLATE_INCONSISTENT),
        of(CKO_PRIVATE_KEY, With::No(CKA_SENSITIVE), CKR_TEMPLATE_INCOMPLETE),
        of(CKO_PRIVATE_KEY, With::No(CKA_EXTRACTABLE), CKR_TEMPLATE_INCOMPLETE),
        created(CKO_PRIVATE_KEY, CKR_TEMPLATE_INCONSISTENT),
        // A session key does not become a token key.
        Rule { by: &[Copy], class: None, with: With::Flag(CKA_TOKEN, true), code: CKR_TEMPLATE_INCONSISTENT },
        any(With::Attribute(CKA_ALLOWED_MECHANISMS), CKR_ATTRIBUTE_TYPE_INVALID),
    ],
    lacks: ED25519,
    ..PLAIN
};

const READ_ONLY: Profile = Profile {
    refused: &[
        (Copy, CKR_ACTION_PROHIBITED),
        (Create, CKR_ACTION_PROHIBITED),
        (Destroy, CKR_ACTION_PROHIBITED),
        (GenerateKey, CKR_ACTION_PROHIBITED),
        (GenerateKeyPair, CKR_ACTION_PROHIBITED),
        (Set, CKR_ACTION_PROHIBITED),
        (Unwrap, CKR_FUNCTION_NOT_SUPPORTED),
        (Wrap, CKR_FUNCTION_NOT_SUPPORTED),
    ],
    ..PLAIN
};

pub(super) static PROFILES: &[Profile] = &[
    PLAIN,
    Profile {
        name: "yubihsm",
        refused: &[(Copy, CKR_FUNCTION_NOT_SUPPORTED), (Unwrap, CKR_MECHANISM_INVALID)],
        rules: &[
            of(CKO_PRIVATE_KEY, With::Flag(CKA_TOKEN, false), CKR_ATTRIBUTE_VALUE_INVALID),
            of(CKO_SECRET_KEY, With::Flag(CKA_TOKEN, false), CKR_ATTRIBUTE_VALUE_INVALID),
            any(With::Attribute(CKA_ALLOWED_MECHANISMS), CKR_ATTRIBUTE_TYPE_INVALID),
            any(With::LongerThan(CKA_ID, 2), CKR_ATTRIBUTE_VALUE_INVALID),
            // The public half is part of the private key.
            created(CKO_PUBLIC_KEY, CKR_ATTRIBUTE_VALUE_INVALID),
        ],
        lacks: ED25519,
        sessions: Some(16),
        idle: Some(Duration::from_secs(3)),
        own_ids: true,
        ..PLAIN
    },
    CLOUDHSM,
    // The same with CKM_RSA_AES_KEY_WRAP, which AWS documents as well.
    Profile { name: "cloudhsm-rsa-aes", also_unwraps: &[CKM_RSA_AES_KEY_WRAP], ..CLOUDHSM },
    Profile {
        name: "luna",
        rules: &[
            created(CKO_PRIVATE_KEY, CKR_TEMPLATE_INCONSISTENT),
            created(CKO_SECRET_KEY, CKR_TEMPLATE_INCONSISTENT),
        ],
        lacks: &[CKM_AES_KEY_WRAP_PAD, CKM_AES_KEY_WRAP],
        also_unwraps: &[CKM_AES_CBC_PAD],
        hangs_at: Some(2),
        ..PLAIN
    },
    NSHIELD,
    // Keys that the module alone protects, not a card set.
    Profile { name: "nshield-module", login: Login::Fails, ..NSHIELD },
    Profile { name: "nethsm", ..READ_ONLY },
    Profile {
        name: "cloud-kms",
        refused: &[
            (Copy, CKR_FUNCTION_NOT_SUPPORTED),
            (Create, CKR_FUNCTION_NOT_SUPPORTED),
            (Destroy, CKR_FUNCTION_NOT_SUPPORTED),
            (GenerateKey, CKR_TEMPLATE_INCONSISTENT),
            (GenerateKeyPair, CKR_TEMPLATE_INCONSISTENT),
            (Set, CKR_FUNCTION_NOT_SUPPORTED),
            (Unwrap, CKR_FUNCTION_NOT_SUPPORTED),
            (Wrap, CKR_FUNCTION_NOT_SUPPORTED),
        ],
        lacks: ED25519,
        login: Login::Ignored,
        ..PLAIN
    },
    Profile {
        name: "smart-card",
        refused: &[
            (Copy, CKR_FUNCTION_NOT_SUPPORTED),
            (Unwrap, CKR_FUNCTION_NOT_SUPPORTED),
            (Wrap, CKR_FUNCTION_NOT_SUPPORTED),
        ],
        rules: &[
            of(CKO_PRIVATE_KEY, With::Flag(CKA_TOKEN, false), CKR_TEMPLATE_INCONSISTENT),
            of(CKO_SECRET_KEY, With::Flag(CKA_TOKEN, false), CKR_TEMPLATE_INCONSISTENT),
            any(With::Attribute(CKA_ALLOWED_MECHANISMS), CKR_ATTRIBUTE_TYPE_INVALID),
        ],
        lacks: ED25519,
        sessions: Some(1),
        signs_in: Some(Duration::from_millis(200)),
        private_keys: Some(1),
        zero_padded: true,
        ..PLAIN
    },
    // Of no vendor: a token that unwraps AES keys with no RSA mechanism.
    Profile { name: "no-oaep", lacks: &[CKM_RSA_PKCS_OAEP], ..PLAIN },
];

const fn of(class: u64, with: With, code: u64) -> Rule {
    Rule { by: &[], class: Some(class), with, code }
}

const fn any(with: With, code: u64) -> Rule {
    Rule { by: &[], class: None, with, code }
}

const fn created(class: u64, code: u64) -> Rule {
    Rule { by: &[Create], class: Some(class), with: With::Anything, code }
}
