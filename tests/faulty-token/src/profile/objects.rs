//! Objects as the profile has them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_CLASS, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE,
    CK_TRUE, CK_ULONG, CKA_CLASS, CKA_ID, CKA_TOKEN, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY, CKO_SECRET_KEY,
    CKR_DEVICE_MEMORY, CKR_MECHANISM_INVALID, CKR_OK,
};

use super::{
    Makes, flag, is_kept_private_key,
    layer::{inner, profile, touch, used},
    unwrap, value,
};
use crate::{control, real};

/// When token objects were made that C_FindObjects does not find yet.
static MADE: Mutex<Option<HashMap<CK_OBJECT_HANDLE, Instant>>> = Mutex::new(None);

pub(super) fn install(list: &mut CK_FUNCTION_LIST) {
    list.C_CreateObject = Some(create);
    list.C_CopyObject = Some(copy);
    list.C_DestroyObject = Some(destroy);
    list.C_SetAttributeValue = Some(set);
    list.C_GenerateKey = Some(generate_key);
    list.C_GenerateKeyPair = Some(generate_key_pair);
    list.C_UnwrapKey = Some(unwrap_key);
    list.C_WrapKey = Some(wrap_key);
    list.C_FindObjects = Some(find_objects);
}

/// A template for the token.
pub(super) struct Template {
    attributes: Vec<CK_ATTRIBUTE>,
    /// The value of CKA_ID that `attributes` points to.
    _id: Option<Box<[u8; 2]>>,
}

impl Template {
    pub(super) fn pointer(&mut self) -> *mut CK_ATTRIBUTE {
        self.attributes.as_mut_ptr()
    }

    pub(super) fn count(&self) -> CK_ULONG {
        CK_ULONG::try_from(self.attributes.len()).unwrap_or(0)
    }

    fn add_id(&mut self, mut id: Box<[u8; 2]>) {
        self.attributes.push(CK_ATTRIBUTE { type_: CKA_ID, pValue: id.as_mut_ptr().cast(), ulValueLen: 2 });
        self._id = Some(id);
    }
}

/// Judges the caller's template, and copies it.
///
/// # Safety
/// The template must be valid, as PKCS#11 requires.
unsafe fn taken(
    function: Makes,
    class: Option<CK_OBJECT_CLASS>,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> Result<Template, CK_RV> {
    let length = usize::try_from(count).unwrap_or(0);
    let attributes = if template.is_null() || length == 0 {
        Vec::new()
    } else {
        // SAFETY: by the contract above.
        unsafe { std::slice::from_raw_parts(template, length) }.to_vec()
    };
    if let Some(code) = profile().refuses(function).or_else(|| profile().judge(function, class, &attributes)) {
        control::note(&format!("fault {function:?} refused"));
        return Err(code);
    }
    let full = profile().private_keys.is_some_and(|most| private_keys_in_token() >= most);
    if full && is_kept_private_key(&attributes, class) {
        control::note(&format!("fault {function:?} full"));
        return Err(CKR_DEVICE_MEMORY);
    }
    let is_new = !matches!(function, Makes::Set | Makes::Copy);
    let mut taken = Template { attributes, _id: None };
    if profile().own_ids && is_new && value(&taken.attributes, CKA_ID).is_none() {
        taken.add_id(Box::new(new_id()));
    }
    Ok(taken)
}

/// An ID of two bytes that no other process gives at the same time.
fn new_id() -> [u8; 2] {
    static NEXT: Mutex<u32> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    *next += 1;
    let [.., high, low] = (std::process::id().wrapping_mul(7919) + *next).to_be_bytes();
    [high, low]
}

/// The private keys that the token holds, as SoftHSM sees them.
fn private_keys_in_token() -> usize {
    let Some(list) = real() else { return 0 };
    let (Some(open), Some(init), Some(find), Some(end), Some(close)) =
        (list.C_OpenSession, list.C_FindObjectsInit, list.C_FindObjects, list.C_FindObjectsFinal, list.C_CloseSession)
    else {
        return 0;
    };
    let (mut class, mut token, mut session) = (CKO_PRIVATE_KEY, CK_TRUE, 0);
    let mut template = [
        CK_ATTRIBUTE { type_: CKA_CLASS, pValue: (&raw mut class).cast(), ulValueLen: 8 },
        CK_ATTRIBUTE { type_: CKA_TOKEN, pValue: (&raw mut token).cast(), ulValueLen: 1 },
    ];
    let (mut found, mut count) = ([0; 16], 0);
    // SAFETY: the pointers are to locals of the lengths that are given.
    unsafe {
        let flags = cryptoki_sys::CKF_SERIAL_SESSION;
        if open(crate::last_slot(), flags, std::ptr::null_mut(), None, &raw mut session) != CKR_OK {
            return 0;
        }
        if init(session, template.as_mut_ptr(), 2) == CKR_OK {
            find(session, found.as_mut_ptr(), 16, &raw mut count);
            end(session);
        }
        close(session);
    }
    usize::try_from(count).unwrap_or(0)
}

/// Notes the end of a call that makes an object, and a token object that it made.
fn made(session: CK_SESSION_HANDLE, template: &Template, handle: *const CK_OBJECT_HANDLE, rv: CK_RV) -> CK_RV {
    // Generating a key takes time.
    touch(session);
    if rv == CKR_OK && profile().late.is_some() && flag(&template.attributes, CKA_TOKEN) == Some(true) {
        // SAFETY: the token has just written the handle.
        let handle = unsafe { *handle };
        MADE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(handle, Instant::now());
    }
    rv
}

/// Judges a template, or returns from the calling function.
macro_rules! template {
    ($session:ident, $function:ident, $class:expr, $template:ident, $count:ident) => {{
        if let Some(code) = used($session) {
            return code;
        }
        // SAFETY: the caller's arguments.
        match unsafe { taken(Makes::$function, $class, $template, $count) } {
            Ok(template) => template,
            Err(code) => return code,
        }
    }};
}

unsafe extern "C" fn create(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    object: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let mut taken = template!(session, Create, None, template, count);
    let rv = inner!(C_CreateObject(session, taken.pointer(), taken.count(), object));
    made(session, &taken, object, rv)
}

unsafe extern "C" fn copy(
    session: CK_SESSION_HANDLE,
    from: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    object: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let mut taken = template!(session, Copy, None, template, count);
    let rv = inner!(C_CopyObject(session, from, taken.pointer(), taken.count(), object));
    made(session, &taken, object, rv)
}

unsafe extern "C" fn destroy(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> CK_RV {
    match profile().refuses(Makes::Destroy) {
        Some(code) => code,
        None => inner!(C_DestroyObject(session, object)),
    }
}

unsafe extern "C" fn set(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    let mut taken = template!(session, Set, None, template, count);
    inner!(C_SetAttributeValue(session, object, taken.pointer(), taken.count()))
}

unsafe extern "C" fn generate_key(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let mut taken = template!(session, GenerateKey, Some(CKO_SECRET_KEY), template, count);
    unwrap::allow_decryption(&mut taken.attributes);
    let rv = inner!(C_GenerateKey(session, mechanism, taken.pointer(), taken.count(), key));
    made(session, &taken, key, rv)
}

unsafe extern "C" fn generate_key_pair(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    public: *mut CK_ATTRIBUTE,
    public_count: CK_ULONG,
    private: *mut CK_ATTRIBUTE,
    private_count: CK_ULONG,
    public_key: *mut CK_OBJECT_HANDLE,
    private_key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    // SAFETY: the caller's pointer to a mechanism is valid, as C_GenerateKeyPair requires.
    if profile().mechanism(unsafe { (*mechanism).mechanism }).is_none() {
        return CKR_MECHANISM_INVALID;
    }
    let mut public = template!(session, GenerateKeyPair, Some(CKO_PUBLIC_KEY), public, public_count);
    let mut private = template!(session, GenerateKeyPair, Some(CKO_PRIVATE_KEY), private, private_count);
    if let (Some(id), true) = (&private._id, public._id.is_some()) {
        // The same for both halves.
        let id = id.clone();
        public.attributes.retain(|attribute| attribute.type_ != CKA_ID);
        public.add_id(id);
    }
    let rv = inner!(C_GenerateKeyPair(
        session,
        mechanism,
        public.pointer(),
        public.count(),
        private.pointer(),
        private.count(),
        public_key,
        private_key
    ));
    made(session, &public, public_key, rv);
    made(session, &private, private_key, rv)
}

unsafe extern "C" fn unwrap_key(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    with: CK_OBJECT_HANDLE,
    wrapped: *mut CK_BYTE,
    length: CK_ULONG,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let mut taken = template!(session, Unwrap, None, template, count);
    unwrap::allow_decryption(&mut taken.attributes);
    // SAFETY: the caller's pointer to a mechanism, and to wrapped bytes of this length.
    let (mechanism, bytes) =
        unsafe { (*mechanism, std::slice::from_raw_parts(wrapped, usize::try_from(length).unwrap_or(0))) };
    let rv = unwrap::unwrap(session, mechanism, with, bytes, &mut taken, key);
    made(session, &taken, key, rv)
}

unsafe extern "C" fn wrap_key(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    with: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    wrapped: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    if let Some(code) = profile().refuses(Makes::Wrap) {
        return code;
    }
    // SAFETY: the caller's pointer to a mechanism is valid, as C_WrapKey requires.
    let mut mechanism = unsafe { *mechanism };
    let Some(number) = profile().mechanism(mechanism.mechanism) else { return CKR_MECHANISM_INVALID };
    mechanism.mechanism = number;
    inner!(C_WrapKey(session, &raw mut mechanism, with, key, wrapped, length))
}

unsafe extern "C" fn find_objects(
    session: CK_SESSION_HANDLE,
    found: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    let rv = inner!(C_FindObjects(session, found, most, count));
    let (Some(late), CKR_OK) = (profile().late, rv) else { return rv };
    let made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_late = |handle: &CK_OBJECT_HANDLE| {
        made.as_ref().and_then(|made| made.get(handle)).is_some_and(|since| since.elapsed() < late)
    };
    // SAFETY: the token has just written the count, and that many handles.
    let handles = unsafe { std::slice::from_raw_parts_mut(found, usize::try_from(*count).unwrap_or(0)) };
    let visible: Vec<_> = handles.iter().copied().filter(|handle| !is_late(handle)).collect();
    if visible.len() < handles.len() {
        control::note("fault C_FindObjects late");
    }
    handles.iter_mut().zip(&visible).for_each(|(handle, visible)| *handle = *visible);
    // SAFETY: as above. An empty answer ends a search: the token would return the rest next.
    unsafe { *count = CK_ULONG::try_from(visible.len()).unwrap_or(0) };
    rv
}
