//! C_UnwrapKey with mechanisms that SoftHSM lacks, made of those that it has.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BBOOL, CK_FALSE, CK_MECHANISM, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_TRUE, CK_ULONG, CKA_CLASS, CKA_DECRYPT, CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_MODULUS,
    CKA_PRIVATE, CKA_SENSITIVE, CKA_TOKEN, CKA_UNWRAP, CKA_VALUE, CKA_VALUE_LEN, CKA_WRAP, CKK_AES, CKK_GENERIC_SECRET,
    CKM_AES_CBC_PAD, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP_PAD, CKM_RSA_AES_KEY_WRAP, CKM_RSA_PKCS_OAEP, CKO_SECRET_KEY,
    CKR_ARGUMENTS_BAD, CKR_GENERAL_ERROR, CKR_MECHANISM_INVALID, CKR_OK, CKR_WRAPPED_KEY_LEN_RANGE,
};

use super::{
    layer::{inner, profile},
    number,
    objects::Template,
};
use crate::real;

/// CK_RSA_AES_KEY_WRAP_PARAMS (PKCS#11 v3.0, section 2.1.20).
#[repr(C)]
struct RsaAesParameters {
    aes_key_bits: CK_ULONG,
    oaep: *mut cryptoki_sys::CK_RSA_PKCS_OAEP_PARAMS,
}

/// Calls the real module.
macro_rules! softhsm {
    ($name:ident($($argument:expr),*)) => {{
        let function = real().and_then(|real| real.$name).ok_or(CKR_GENERAL_ERROR)?;
        // SAFETY: the pointers are to the caller's arguments and to locals, with the lengths that are given.
        match unsafe { function($($argument),*) } {
            CKR_OK => Ok(()),
            code => Err(code),
        }
    }};
}

/// Unwraps with the profile's mechanisms.
pub(super) fn unwrap(
    session: CK_SESSION_HANDLE,
    mut mechanism: CK_MECHANISM,
    with: CK_OBJECT_HANDLE,
    wrapped: &[u8],
    template: &mut Template,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let made = match mechanism.mechanism {
        emulated if profile().also_unwraps.contains(&emulated) => match emulated {
            CKM_RSA_AES_KEY_WRAP => rsa_aes(session, mechanism, with, wrapped, template),
            CKM_AES_CBC_PAD => cbc_pad(session, mechanism, with, wrapped, template),
            _ => Err(CKR_MECHANISM_INVALID),
        },
        number => {
            let Some(number) = profile().mechanism(number) else { return CKR_MECHANISM_INVALID };
            mechanism.mechanism = number;
            let (mut bytes, pointer) = (wrapped.to_vec(), &raw mut mechanism);
            let length = CK_ULONG::try_from(bytes.len()).unwrap_or(0);
            return inner!(C_UnwrapKey(
                session,
                pointer,
                with,
                bytes.as_mut_ptr(),
                length,
                template.pointer(),
                template.count(),
                key
            ));
        }
    };
    match made {
        Ok(handle) => {
            // SAFETY: the caller's pointer to a handle.
            unsafe { *key = handle };
            CKR_OK
        }
        Err(code) => code,
    }
}

/// Lets the AES keys of a profile with CKM_AES_CBC_PAD decrypt, which the unwrapping of [`cbc_pad`] needs.
pub(super) fn allow_decryption(template: &mut [CK_ATTRIBUTE]) {
    static TRUE: CK_BBOOL = CK_TRUE;
    let is_aes = number(template, CKA_CLASS).is_none_or(|class| class == CKO_SECRET_KEY)
        && number(template, CKA_KEY_TYPE) == Some(CKK_AES);
    if is_aes && profile().also_unwraps.contains(&CKM_AES_CBC_PAD) {
        for attribute in template.iter_mut().filter(|attribute| attribute.type_ == CKA_DECRYPT) {
            // Only read by the token.
            attribute.pValue = (&raw const TRUE).cast_mut().cast();
        }
    }
}

/// RSA-OAEP of an AES key, then RFC 5649 under that key.
fn rsa_aes(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM,
    with: CK_OBJECT_HANDLE,
    wrapped: &[u8],
    template: &mut Template,
) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    if mechanism.pParameter.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: the parameters of this mechanism.
    let parameters = unsafe { &*mechanism.pParameter.cast::<RsaAesParameters>() };
    if parameters.aes_key_bits != 256 {
        return Err(CKR_ARGUMENTS_BAD);
    }
    let mut modulus = CK_ATTRIBUTE { type_: CKA_MODULUS, pValue: std::ptr::null_mut(), ulValueLen: 0 };
    softhsm!(C_GetAttributeValue(session, with, &raw mut modulus, 1))?;
    let size = usize::try_from(modulus.ulValueLen).unwrap_or(usize::MAX);
    let (first, second) = wrapped.split_at_checked(size).ok_or(CKR_WRAPPED_KEY_LEN_RANGE)?;
    let oaep = CK_MECHANISM {
        mechanism: CKM_RSA_PKCS_OAEP,
        pParameter: parameters.oaep.cast(),
        ulParameterLen: CK_ULONG::try_from(size_of::<cryptoki_sys::CK_RSA_PKCS_OAEP_PARAMS>()).unwrap_or(0),
    };
    let mut flags = Flags::default();
    let mut aes = flags.aes();
    let aes = real_unwrap(session, oaep, with, first, aes.as_mut_ptr(), CK_ULONG::try_from(aes.len()).unwrap_or(0))?;
    let made = real_unwrap(session, plain(CKM_AES_KEY_WRAP_PAD), aes, second, template.pointer(), template.count());
    softhsm!(C_DestroyObject(session, aes))?;
    made
}

/// Decrypts, wraps the result under another key in a way that SoftHSM unwraps, and unwraps it.
fn cbc_pad(
    session: CK_SESSION_HANDLE,
    mut mechanism: CK_MECHANISM,
    with: CK_OBJECT_HANDLE,
    wrapped: &[u8],
    template: &mut Template,
) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let (mut input, mut secret) = (wrapped.to_vec(), vec![0; wrapped.len() + 16]);
    let mut length = CK_ULONG::try_from(secret.len()).unwrap_or(0);
    softhsm!(C_DecryptInit(session, &raw mut mechanism, with))?;
    let input_length = CK_ULONG::try_from(input.len()).unwrap_or(0);
    softhsm!(C_Decrypt(session, input.as_mut_ptr(), input_length, secret.as_mut_ptr(), &raw mut length))?;
    let (mut flags, mut wrapping, mut holder) = (Flags::default(), 0, 0);
    let mut generate = flags.aes();
    generate.push(attribute(CKA_VALUE_LEN, &mut flags.length));
    let mut generation = plain(CKM_AES_KEY_GEN);
    let count = CK_ULONG::try_from(generate.len()).unwrap_or(0);
    softhsm!(C_GenerateKey(session, &raw mut generation, generate.as_mut_ptr(), count, &raw mut wrapping))?;
    let mut object = flags.holder(&mut secret, length);
    let count = CK_ULONG::try_from(object.len()).unwrap_or(0);
    softhsm!(C_CreateObject(session, object.as_mut_ptr(), count, &raw mut holder))?;
    let (mut again, mut size) = (vec![0; wrapped.len() + 64], CK_ULONG::try_from(wrapped.len() + 64).unwrap_or(0));
    let mut wrap = plain(CKM_AES_KEY_WRAP_PAD);
    softhsm!(C_WrapKey(session, &raw mut wrap, wrapping, holder, again.as_mut_ptr(), &raw mut size))?;
    again.truncate(usize::try_from(size).unwrap_or(0));
    let made = real_unwrap(session, wrap, wrapping, &again, template.pointer(), template.count());
    softhsm!(C_DestroyObject(session, holder))?;
    softhsm!(C_DestroyObject(session, wrapping))?;
    made
}

fn plain(mechanism: CK_MECHANISM_TYPE) -> CK_MECHANISM {
    CK_MECHANISM { mechanism, pParameter: std::ptr::null_mut(), ulParameterLen: 0 }
}

fn real_unwrap(
    session: CK_SESSION_HANDLE,
    mut mechanism: CK_MECHANISM,
    with: CK_OBJECT_HANDLE,
    wrapped: &[u8],
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let (mut bytes, mut handle) = (wrapped.to_vec(), 0);
    let length = CK_ULONG::try_from(bytes.len()).unwrap_or(0);
    softhsm!(C_UnwrapKey(
        session,
        &raw mut mechanism,
        with,
        bytes.as_mut_ptr(),
        length,
        template,
        count,
        &raw mut handle
    ))?;
    Ok(handle)
}

/// Values of the attributes of session keys.
struct Flags {
    class: CK_ULONG,
    aes: CK_ULONG,
    generic: CK_ULONG,
    length: CK_ULONG,
    yes: CK_BBOOL,
    no: CK_BBOOL,
}

impl Default for Flags {
    fn default() -> Self {
        let (class, aes, generic) = (CKO_SECRET_KEY, CKK_AES, CKK_GENERIC_SECRET);
        Self { class, aes, generic, length: 32, yes: CK_TRUE, no: CK_FALSE }
    }
}

impl Flags {
    /// An AES-256 key that wraps and unwraps.
    fn aes(&mut self) -> Vec<CK_ATTRIBUTE> {
        vec![
            attribute(CKA_CLASS, &mut self.class),
            attribute(CKA_KEY_TYPE, &mut self.aes),
            attribute(CKA_TOKEN, &mut self.no),
            attribute(CKA_PRIVATE, &mut self.yes),
            attribute(CKA_SENSITIVE, &mut self.yes),
            attribute(CKA_EXTRACTABLE, &mut self.no),
            attribute(CKA_WRAP, &mut self.yes),
            attribute(CKA_UNWRAP, &mut self.yes),
        ]
    }

    /// A secret that may be wrapped.
    fn holder(&mut self, secret: &mut [u8], length: CK_ULONG) -> [CK_ATTRIBUTE; 7] {
        [
            attribute(CKA_CLASS, &mut self.class),
            attribute(CKA_KEY_TYPE, &mut self.generic),
            attribute(CKA_TOKEN, &mut self.no),
            attribute(CKA_PRIVATE, &mut self.yes),
            attribute(CKA_SENSITIVE, &mut self.no),
            attribute(CKA_EXTRACTABLE, &mut self.yes),
            CK_ATTRIBUTE { type_: CKA_VALUE, pValue: secret.as_mut_ptr().cast(), ulValueLen: length },
        ]
    }
}

fn attribute<T>(type_: CK_ATTRIBUTE_TYPE, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_,
        pValue: std::ptr::from_mut(value).cast(),
        ulValueLen: CK_ULONG::try_from(size_of::<T>()).unwrap_or(0),
    }
}
