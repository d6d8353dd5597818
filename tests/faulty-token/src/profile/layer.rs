//! Tokens, sessions, logins, mechanisms and signatures as the profile has them.

use std::{
    collections::HashMap,
    ffi::c_void,
    fs::OpenOptions,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_FLAGS, CK_FUNCTION_LIST, CK_MECHANISM, CK_MECHANISM_TYPE, CK_NOTIFY, CK_OBJECT_HANDLE,
    CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR,
    CKF_LOGIN_REQUIRED, CKF_RW_SESSION, CKF_USER_PIN_INITIALIZED, CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL,
    CKR_FUNCTION_NOT_SUPPORTED, CKR_MECHANISM_INVALID, CKR_OK, CKR_SESSION_COUNT, CKR_SESSION_HANDLE_INVALID,
    CKR_USER_TYPE_INVALID, CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS, CKS_RW_PUBLIC_SESSION, CKS_RW_USER_FUNCTIONS,
    CKU_USER,
};

use super::{Login, Profile, current, file, objects};
use crate::{control, real};

/// The functions below the layer.
static INNER: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();

pub(super) fn install(list: &mut CK_FUNCTION_LIST) {
    INNER.get_or_init(|| *list);
    list.C_GetTokenInfo = Some(token_info);
    list.C_OpenSession = Some(open_session);
    list.C_CloseSession = Some(close_session);
    list.C_GetSessionInfo = Some(session_info);
    list.C_Login = Some(login);
    list.C_GetMechanismList = Some(mechanism_list);
    list.C_FindObjectsInit = Some(find_objects_init);
    list.C_SignInit = Some(sign_init);
    list.C_Sign = Some(sign);
    objects::install(list);
}

/// Calls a function below the layer.
macro_rules! inner {
    ($name:ident($($argument:expr),*)) => {
        match $crate::profile::layer::functions().and_then(|functions| functions.$name) {
            // SAFETY: the arguments are the caller's, or replace them by others that are valid for as long.
            Some(function) => unsafe { function($($argument),*) },
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}
pub(super) use inner;

pub(super) fn functions() -> Option<&'static CK_FUNCTION_LIST> {
    INNER.get()
}

/// The profile. The layer is not installed without one.
pub(super) fn profile() -> &'static Profile {
    current().unwrap_or_else(|| std::process::abort())
}

/// When each open session was last used.
static USED: Mutex<Option<HashMap<CK_SESSION_HANDLE, Instant>>> = Mutex::new(None);
/// Number of sessions opened so far.
static OPENED: AtomicU64 = AtomicU64::new(0);
/// When a session was last opened.
static LAST_OPENED: Mutex<Option<Instant>> = Mutex::new(None);

/// Records that a session is used; the return code if it has been idle for too long.
pub(super) fn used(session: CK_SESSION_HANDLE) -> Option<CK_RV> {
    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let last = used.get_or_insert_default().get_mut(&session)?;
    if profile().idle.is_none_or(|most| last.elapsed() <= most) {
        *last = Instant::now();
        return None;
    }
    // It stays gone, since nothing updates its time.
    control::note("fault session idle");
    Some(CKR_SESSION_HANDLE_INVALID)
}

/// Records that a call with a session has ended.
pub(super) fn touch(session: CK_SESSION_HANDLE) {
    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = used.get_or_insert_default().get_mut(&session) {
        *last = Instant::now();
    }
}

unsafe extern "C" fn token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let rv = inner!(C_GetTokenInfo(slot, info));
    if rv == CKR_OK {
        // SAFETY: the token has just written to it.
        let info = unsafe { &mut *info };
        if profile().login != Login::Required {
            info.flags &= !(CKF_LOGIN_REQUIRED | CKF_USER_PIN_INITIALIZED);
        }
        if profile().zero_padded {
            info.label.iter_mut().rev().take_while(|byte| **byte == b' ').for_each(|byte| *byte = 0);
        }
        if let Some(most) = profile().sessions {
            info.ulMaxSessionCount = most;
            info.ulMaxRwSessionCount = most;
        }
    }
    rv
}

unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    if let Some(rv) = profile().read_only.filter(|_| flags & CKF_RW_SESSION == 0) {
        return rv;
    }
    let open = USED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().len();
    if profile().sessions.is_some_and(|most| CK_ULONG::try_from(open).is_ok_and(|open| open >= most)) {
        control::note("fault C_OpenSession sessions");
        return CKR_SESSION_COUNT;
    }
    let mut last = LAST_OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let since = last.replace(Instant::now()).map(|last| last.elapsed());
    drop(last);
    if let (Some(pace), Some(since)) = (profile().pace, since)
        && since < pace
    {
        control::note("fault C_OpenSession pace");
        return CKR_ARGUMENTS_BAD;
    }
    if profile().hangs_at == Some(OPENED.fetch_add(1, Ordering::Relaxed) + 1) && is_first("hung") {
        control::note("fault C_OpenSession hang");
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    let rv = inner!(C_OpenSession(slot, flags, application, notify, session));
    if rv == CKR_OK {
        // SAFETY: the token has just written to it.
        let session = unsafe { *session };
        USED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(session, Instant::now());
        if profile().login != Login::Required {
            log_in(session);
        }
    }
    rv
}

/// Whether no process with this control file has passed here.
fn is_first(name: &str) -> bool {
    file(name).is_some_and(|path| OpenOptions::new().write(true).create_new(true).open(path).is_ok())
}

/// SoftHSM hides private objects without a login; a token that requires none does not.
fn log_in(session: CK_SESSION_HANDLE) {
    let path = std::env::var_os("FAULTY_TOKEN_PIN_FILE");
    let Some(pin) = path.and_then(|path| std::fs::read_to_string(path).ok()) else { return };
    let mut pin = pin.trim_end().as_bytes().to_vec();
    if let (Some(login), Ok(length)) = (real().and_then(|real| real.C_Login), CK_ULONG::try_from(pin.len())) {
        // SAFETY: the PIN is valid for reading its length during the call. Further logins have no effect.
        let _ = unsafe { login(session, CKU_USER, pin.as_mut_ptr(), length) };
    }
}

unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    USED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().remove(&session);
    inner!(C_CloseSession(session))
}

unsafe extern "C" fn session_info(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO) -> CK_RV {
    if let Some(rv) = used(session) {
        return rv;
    }
    let rv = inner!(C_GetSessionInfo(session, info));
    if rv == CKR_OK && profile().login != Login::Required {
        // SAFETY: the token has just written to it.
        let info = unsafe { &mut *info };
        info.state = match info.state {
            CKS_RO_USER_FUNCTIONS => CKS_RO_PUBLIC_SESSION,
            CKS_RW_USER_FUNCTIONS => CKS_RW_PUBLIC_SESSION,
            other => other,
        };
    }
    rv
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    match profile().login {
        Login::Required => inner!(C_Login(session, user, pin, length)),
        Login::Ignored => CKR_OK,
        Login::Fails => CKR_USER_TYPE_INVALID,
    }
}

unsafe extern "C" fn mechanism_list(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) -> CK_RV {
    let mut all = vec![0; 512];
    let mut length: CK_ULONG = 512;
    let rv = inner!(C_GetMechanismList(slot, all.as_mut_ptr(), &raw mut length));
    if rv != CKR_OK {
        return rv;
    }
    all.truncate(usize::try_from(length).unwrap_or(0));
    all.retain(|number| !profile().lacks.contains(number));
    all.extend(profile().renamed.iter().map(|(own, _)| *own));
    all.extend(profile().also_unwraps);
    let Ok(have) = CK_ULONG::try_from(all.len()) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's pointers are to a count, and to that many numbers, or null.
    unsafe {
        let room = std::mem::replace(&mut *count, have);
        if list.is_null() {
            return CKR_OK;
        }
        if room < have {
            return CKR_BUFFER_TOO_SMALL;
        }
        std::ptr::copy_nonoverlapping(all.as_ptr(), list, all.len());
    }
    CKR_OK
}

unsafe extern "C" fn find_objects_init(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    if let Some(rv) = used(session) {
        return rv;
    }
    inner!(C_FindObjectsInit(session, template, count))
}

unsafe extern "C" fn sign_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    if let Some(rv) = used(session) {
        return rv;
    }
    // SAFETY: the caller's pointer to a mechanism is valid, as C_SignInit requires.
    if profile().mechanism(unsafe { (*mechanism).mechanism }).is_none() {
        return CKR_MECHANISM_INVALID;
    }
    inner!(C_SignInit(session, mechanism, key))
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_length: CK_ULONG,
    signature: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    if let Some(time) = profile().signs_in.filter(|_| !signature.is_null()) {
        std::thread::sleep(time);
    }
    let rv = inner!(C_Sign(session, data, data_length, signature, length));
    touch(session);
    rv
}
