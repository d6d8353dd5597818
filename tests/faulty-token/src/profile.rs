//! Profiles: what the documentation of vendors' tokens says that SoftHSM does not do, as data.
//!
//! `FAULTY_TOKEN_PROFILE` names one. It forms a layer above the faults: the caller sees the profile, and the faults are
//! those of the token behind it. Sources and what is not covered are in hsm-config/VENDORS.md; where a vendor documents a
//! limit and not the return code, the code is the one that PKCS#11 has for it. Times are shorter than those of devices.

mod layer;
mod objects;
mod table;
mod unwrap;

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_FUNCTION_LIST, CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CK_RV, CKA_CLASS, CKA_TOKEN,
    CKO_PRIVATE_KEY,
};

/// What distinguishes a token from SoftHSM.
pub(crate) struct Profile {
    /// Its name in `FAULTY_TOKEN_PROFILE`.
    pub(crate) name: &'static str,
    /// Functions that the library refuses, and their return codes.
    pub(crate) refused: &'static [(Makes, CK_RV)],
    /// Objects that it does not make, or not so.
    pub(crate) rules: &'static [Rule],
    /// Mechanisms of SoftHSM that it lacks.
    pub(crate) lacks: &'static [CK_MECHANISM_TYPE],
    /// Mechanisms that it has under a number of its own, and SoftHSM's number.
    pub(crate) renamed: &'static [(CK_MECHANISM_TYPE, CK_MECHANISM_TYPE)],
    /// Mechanisms of C_UnwrapKey that SoftHSM lacks: CKM_RSA_AES_KEY_WRAP and CKM_AES_CBC_PAD.
    pub(crate) also_unwraps: &'static [CK_MECHANISM_TYPE],
    /// How it handles C_Login.
    pub(crate) login: Login,
    /// Most sessions of a process at once.
    pub(crate) sessions: Option<u64>,
    /// What C_OpenSession returns without CKF_RW_SESSION.
    pub(crate) read_only: Option<CK_RV>,
    /// Time between two sessions below which C_OpenSession returns CKR_ARGUMENTS_BAD.
    pub(crate) pace: Option<Duration>,
    /// The session of a process whose C_OpenSession hangs, once in all processes together.
    pub(crate) hangs_at: Option<u64>,
    /// Time after which an unused session is gone.
    pub(crate) idle: Option<Duration>,
    /// Duration of a signature.
    pub(crate) signs_in: Option<Duration>,
    /// Time until C_FindObjects finds a new token object.
    pub(crate) late: Option<Duration>,
    /// Most private keys in the token.
    pub(crate) private_keys: Option<usize>,
    /// Whether the token gives keys without CKA_ID one of two bytes.
    pub(crate) own_ids: bool,
    /// Whether texts are padded with zero bytes.
    pub(crate) zero_padded: bool,
}

/// How a token handles C_Login.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    /// As the standard says.
    Required,
    /// CKF_LOGIN_REQUIRED is not set; C_Login succeeds with any PIN.
    Ignored,
    /// CKF_LOGIN_REQUIRED is not set; C_Login fails.
    Fails,
}

/// Functions that make or change objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Makes {
    Copy,
    Create,
    Destroy,
    GenerateKey,
    GenerateKeyPair,
    Set,
    Unwrap,
    Wrap,
}

/// Objects that are refused.
pub(crate) struct Rule {
    /// By which functions; empty for all.
    pub(crate) by: &'static [Makes],
    /// Of which class; `None` for all.
    pub(crate) class: Option<CK_OBJECT_CLASS>,
    /// With what in their template.
    pub(crate) with: With,
    /// The return code.
    pub(crate) code: CK_RV,
}

/// What a template has.
#[derive(Clone, Copy)]
pub(crate) enum With {
    /// Anything.
    Anything,
    /// The attribute, with any value.
    Attribute(CK_ATTRIBUTE_TYPE),
    /// Not the attribute.
    No(CK_ATTRIBUTE_TYPE),
    /// The attribute, with this value.
    Flag(CK_ATTRIBUTE_TYPE, bool),
    /// The attribute, with a longer value.
    LongerThan(CK_ATTRIBUTE_TYPE, usize),
}

/// The profile of this process.
pub(crate) fn current() -> Option<&'static Profile> {
    static CURRENT: OnceLock<Option<&'static Profile>> = OnceLock::new();
    *CURRENT.get_or_init(|| {
        let name = std::env::var_os("FAULTY_TOKEN_PROFILE")?.into_string().ok()?;
        let found = table::PROFILES.iter().find(|profile| profile.name == name);
        #[expect(clippy::print_stderr, reason = "a test with a wrong name must not run without a profile")]
        if found.is_none() {
            eprintln!("faulty-token has no profile {name:?}");
            std::process::abort();
        }
        found
    })
}

/// Puts the profile's layer on the functions, if there is a profile.
pub(crate) fn install(list: &mut CK_FUNCTION_LIST) {
    if current().is_some() {
        layer::install(list);
    }
}

/// A file next to that of the commands.
fn file(extension: &str) -> Option<PathBuf> {
    std::env::var_os("FAULTY_TOKEN_CONTROL").map(|path| PathBuf::from(path).with_extension(extension))
}

impl Profile {
    /// The code with which a function is refused as a whole.
    fn refuses(&self, function: Makes) -> Option<CK_RV> {
        self.refused.iter().find(|(refused, _)| *refused == function).map(|(_, code)| *code)
    }

    /// The code with which a template is refused. `class` is that of the function if the template has none.
    fn judge(&self, function: Makes, class: Option<CK_OBJECT_CLASS>, template: &[CK_ATTRIBUTE]) -> Option<CK_RV> {
        let class = number(template, CKA_CLASS).or(class);
        let broken = self.rules.iter().find(|rule| {
            (rule.by.is_empty() || rule.by.contains(&function))
                && (rule.class.is_none() || rule.class == class)
                && rule.with.is_in(template)
        });
        broken.map(|rule| rule.code)
    }

    /// Whether a mechanism is one that the token lacks, and SoftHSM's number of it otherwise.
    fn mechanism(&self, number: CK_MECHANISM_TYPE) -> Option<CK_MECHANISM_TYPE> {
        let renamed = self.renamed.iter().find(|(own, _)| *own == number);
        match renamed {
            Some((_, real)) => Some(*real),
            None => Some(number).filter(|number| !self.lacks.contains(number)),
        }
    }
}

impl With {
    fn is_in(self, template: &[CK_ATTRIBUTE]) -> bool {
        match self {
            Self::Anything => true,
            Self::Attribute(wanted) => value(template, wanted).is_some(),
            Self::No(wanted) => value(template, wanted).is_none(),
            Self::Flag(wanted, is) => flag(template, wanted) == Some(is),
            Self::LongerThan(wanted, most) => value(template, wanted).is_some_and(|value| value.len() > most),
        }
    }
}

/// An attribute's value in a template.
fn value(template: &[CK_ATTRIBUTE], wanted: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
    let attribute = template.iter().find(|attribute| attribute.type_ == wanted)?;
    if attribute.pValue.is_null() {
        return Some(&[]);
    }
    let length = usize::try_from(attribute.ulValueLen).ok()?;
    // SAFETY: the caller of the PKCS#11 function states that the value has this length.
    Some(unsafe { std::slice::from_raw_parts(attribute.pValue.cast::<u8>(), length) })
}

fn flag(template: &[CK_ATTRIBUTE], wanted: CK_ATTRIBUTE_TYPE) -> Option<bool> {
    value(template, wanted)?.first().map(|byte| *byte != 0)
}

fn number(template: &[CK_ATTRIBUTE], wanted: CK_ATTRIBUTE_TYPE) -> Option<u64> {
    Some(u64::from_ne_bytes(value(template, wanted)?.try_into().ok()?))
}

/// Whether a template is of a private key that the token keeps.
fn is_kept_private_key(template: &[CK_ATTRIBUTE], class: Option<CK_OBJECT_CLASS>) -> bool {
    number(template, CKA_CLASS).or(class) == Some(CKO_PRIVATE_KEY) && flag(template, CKA_TOKEN) == Some(true)
}
