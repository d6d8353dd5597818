//! A PKCS#11 module that forwards all calls to another one, and fails on command.
//!
//! `FAULTY_TOKEN_MODULE` is the path of the real module, `FAULTY_TOKEN_CONTROL` a file with commands that is read at
//! each call: see [`control`]. `FAULTY_TOKEN_PROFILE` lets it behave like a vendor's token: see [`profile`]. Only tests
//! load it.

mod control;
mod profile;
mod rest;

use std::{
    collections::HashMap,
    ffi::{c_int, c_ulong, c_void},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use control::Action;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_FLAGS, CK_FUNCTION_LIST, CK_INFO, CK_MECHANISM, CK_MECHANISM_INFO,
    CK_MECHANISM_TYPE, CK_NOTIFY, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID,
    CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CKA_ID, CKF_CLOCK_ON_TOKEN, CKR_DEVICE_REMOVED,
    CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_OK, CKR_SESSION_COUNT, CKR_SESSION_HANDLE_INVALID,
    CKR_TOKEN_NOT_PRESENT, Pkcs11,
};

/// The real module's function list.
static REAL: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
/// The function list returned to the caller.
static LIST: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
/// The session opened last, which is used to lose the login.
static LAST_SESSION: AtomicU64 = AtomicU64::new(0);
/// Number of open sessions.
static OPEN_SESSIONS: AtomicU64 = AtomicU64::new(0);
/// Slot of the session opened last.
static LAST_SLOT: AtomicU64 = AtomicU64::new(0);
/// Offset of the caller's object handles from the real ones.
static OFFSET: AtomicU64 = AtomicU64::new(0);
/// Whether the token was removed after its sessions were last closed.
static WAS_REMOVED: AtomicBool = AtomicBool::new(false);
/// CKA_ID of the key with which each session is about to sign.
static SIGNING: Mutex<Option<HashMap<CK_SESSION_HANDLE, Vec<u8>>>> = Mutex::new(None);
/// When each session was opened or last used to sign.
static USED: Mutex<Option<HashMap<CK_SESSION_HANDLE, Instant>>> = Mutex::new(None);

/// Returns the function list with faults.
///
/// # Safety
/// `list` must be null or valid for writing a pointer, as PKCS#11 requires for C_GetFunctionList.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if let Some(rv) = before("C_GetFunctionList") {
        return rv;
    }
    let Some(real) = real() else { return CKR_GENERAL_ERROR };
    let faulty = LIST.get_or_init(|| {
        let mut faulty = *real;
        install(&mut faulty);
        rest::install(&mut faulty);
        faulty.C_GetFunctionList = Some(C_GetFunctionList);
        faulty.C_GetSlotList = Some(slot_list);
        faulty.C_GetTokenInfo = Some(token_info);
        faulty.C_OpenSession = Some(open_session);
        faulty.C_CloseSession = Some(close_session);
        faulty.C_Login = Some(login);
        faulty.C_FindObjects = Some(find_objects);
        faulty.C_GetAttributeValue = Some(attribute_value);
        faulty.C_SignInit = Some(sign_init);
        faulty.C_Sign = Some(sign);
        profile::install(&mut faulty);
        faulty
    });
    if list.is_null() {
        return CKR_GENERAL_ERROR;
    }
    // SAFETY: the caller's pointer is valid and not null, by the contract above; nothing writes through the list.
    unsafe { *list = std::ptr::from_ref(faulty).cast_mut() };
    CKR_OK
}

fn real() -> Option<&'static CK_FUNCTION_LIST> {
    if let Some(real) = REAL.get() {
        return Some(real);
    }
    let path = std::env::var_os("FAULTY_TOKEN_MODULE")?;
    // SAFETY: the path is from the test and refers to a PKCS#11 module.
    let library = unsafe { Pkcs11::new(path) }.ok()?;
    let mut list = std::ptr::null_mut();
    // SAFETY: the pointer is to a local, as C_GetFunctionList requires.
    let rv = unsafe { library.C_GetFunctionList(&raw mut list) };
    // The library stays loaded for the lifetime of the process.
    std::mem::forget(library);
    if rv != CKR_OK || list.is_null() {
        return None;
    }
    // SAFETY: the module returned CKR_OK, so the list is valid for the lifetime of the process.
    Some(REAL.get_or_init(|| unsafe { *list }))
}

/// Executes the fault of a call; `Some` is the call's return value.
fn before(function: &'static str) -> Option<CK_RV> {
    control::note_call(function);
    match control::fault(function)? {
        Action::Return(rv) => Some(rv),
        Action::Logout => {
            if let Some(logout) = real().and_then(|real| real.C_Logout) {
                // SAFETY: C_Logout accepts any session handle, valid or not.
                let _ = unsafe { logout(LAST_SESSION.load(Ordering::Relaxed)) };
            }
            None
        }
        Action::Removed => removed(function),
        Action::Renumber(by) => {
            OFFSET.fetch_add(by, Ordering::Relaxed);
            None
        }
        Action::Hide
        | Action::Idle(_)
        | Action::Long
        | Action::Malformed
        | Action::Pin(_)
        | Action::Sessions(_)
        | Action::Takes(_)
        | Action::Truncate
        | Action::Wrong => None,
    }
}

/// What a library returns while its token is removed. The sessions are closed permanently.
fn removed(function: &str) -> Option<CK_RV> {
    if !WAS_REMOVED.swap(true, Ordering::Relaxed)
        && let Some(close) = real().and_then(|real| real.C_CloseAllSessions)
    {
        // SAFETY: C_CloseAllSessions accepts any slot ID, valid or not.
        let _ = unsafe { close(LAST_SLOT.load(Ordering::Relaxed)) };
    }
    match function {
        "C_Finalize" | "C_GetFunctionList" | "C_GetInfo" | "C_GetSlotInfo" | "C_GetSlotList" | "C_Initialize" => None,
        "C_GetTokenInfo" | "C_OpenSession" => Some(CKR_TOKEN_NOT_PRESENT),
        _ => Some(CKR_DEVICE_REMOVED),
    }
}

/// Slot of the session opened last.
fn last_slot() -> CK_SLOT_ID {
    LAST_SLOT.load(Ordering::Relaxed)
}

/// The real module's handle of an object.
fn object(handle: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
    // A handle from before a renumbering may match no object or another one, as with real tokens.
    handle.wrapping_sub(OFFSET.load(Ordering::Relaxed))
}

macro_rules! pass_on {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            #[expect(non_snake_case, reason = "PKCS#11 names it so")]
            unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
                if let Some(rv) = before(stringify!($name)) {
                    return rv;
                }
                match real().and_then(|real| real.$name) {
                    // SAFETY: the caller's arguments, unchanged.
                    Some(function) => unsafe { function($($argument),*) },
                    None => CKR_FUNCTION_NOT_SUPPORTED,
                }
            }
        )*

        pub(crate) fn install(list: &mut CK_FUNCTION_LIST) {
            $(list.$name = Some($name);)*
        }
    };
}

pub(crate) use pass_on;

pass_on! {
    C_Initialize(arguments: *mut c_void);
    C_Finalize(reserved: *mut c_void);
    C_GetInfo(info: *mut CK_INFO);
    C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO);
    C_GetMechanismList(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG);
    C_GetMechanismInfo(slot: CK_SLOT_ID, mechanism: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO);
    C_GetSessionInfo(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO);
    C_Logout(session: CK_SESSION_HANDLE);
    C_FindObjectsInit(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    C_FindObjectsFinal(session: CK_SESSION_HANDLE);
}

unsafe extern "C" fn slot_list(present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG) -> CK_RV {
    if let Some(rv) = before("C_GetSlotList") {
        return rv;
    }
    if present != 0 && control::peek("C_GetSlotList") == Some(Action::Removed) && !count.is_null() {
        // SAFETY: the caller's pointer to a count is not null, as C_GetSlotList requires.
        unsafe { *count = 0 };
        return CKR_OK;
    }
    let Some(function) = real().and_then(|real| real.C_GetSlotList) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { function(present, slots, count) }
}

unsafe extern "C" fn token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let reported = control::peek("C_GetTokenInfo");
    if let Some(rv) = before("C_GetTokenInfo") {
        return rv;
    }
    let Some(function) = real().and_then(|real| real.C_GetTokenInfo) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's arguments, unchanged.
    let rv = unsafe { function(slot, info) };
    if rv == CKR_OK {
        // SAFETY: the real module has just written to it.
        let info = unsafe { &mut *info };
        match reported {
            Some(Action::Pin(flags)) => info.flags |= flags,
            Some(Action::Malformed) => {
                // As in IBM's SoftTok.
                info.flags |= CKF_CLOCK_ON_TOKEN;
                info.utcTime = *b"        05:49:45";
                info.label.iter_mut().rev().take_while(|byte| **byte == b' ').for_each(|byte| *byte = 0);
            }
            _ => {}
        }
    }
    rv
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    control::note(&format!("login {}", std::process::id()));
    let rv = match (before("C_Login"), real().and_then(|real| real.C_Login)) {
        (Some(rv), _) => rv,
        // SAFETY: the caller's arguments, unchanged.
        (None, Some(function)) => unsafe { function(session, user, pin, length) },
        (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
    };
    control::note(&format!("done {}", std::process::id()));
    rv
}

unsafe extern "C" fn find_objects(
    session: CK_SESSION_HANDLE,
    found: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    if control::peek("C_FindObjects") == Some(Action::Hide)
        && control::fault("C_FindObjects").is_some()
        && !count.is_null()
    {
        // SAFETY: the caller's pointer to a count is not null, as C_FindObjects requires.
        unsafe { *count = 0 };
        return CKR_OK;
    }
    if let Some(rv) = before("C_FindObjects") {
        return rv;
    }
    let Some(function) = real().and_then(|real| real.C_FindObjects) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's arguments, unchanged.
    let rv = unsafe { function(session, found, most, count) };
    if rv == CKR_OK {
        // SAFETY: the real module has just written the count.
        for at in 0..usize::try_from(unsafe { *count }).unwrap_or(0) {
            // SAFETY: the real module has just written that number of handles.
            unsafe { *found.add(at) = (*found.add(at)).wrapping_add(OFFSET.load(Ordering::Relaxed)) };
        }
    }
    rv
}

unsafe extern "C" fn attribute_value(
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    if let Some(rv) = before("C_GetAttributeValue") {
        return rv;
    }
    let Some(function) = real().and_then(|real| real.C_GetAttributeValue) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's arguments, except for the object handle.
    unsafe { function(session, object(handle), template, count) }
}

unsafe extern "C" fn sign_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    if let Some(Action::Idle(most)) = control::peek("C_SignInit") {
        if idle_since_last(session) > most {
            control::note("fault C_SignInit idle");
            return CKR_SESSION_HANDLE_INVALID;
        }
    } else if let Some(rv) = before("C_SignInit") {
        return rv;
    }
    let Some(function) = real().and_then(|real| real.C_SignInit) else { return CKR_FUNCTION_NOT_SUPPORTED };
    let key = object(key);
    let id = id_of(session, key);
    if let Some(rv) = control::fault_of_key(&id) {
        return rv;
    }
    let mut signing = SIGNING.lock().unwrap_or_else(PoisonError::into_inner);
    signing.get_or_insert_default().insert(session, id);
    drop(signing);
    // SAFETY: the caller's arguments, except for the object handle.
    unsafe { function(session, mechanism, key) }
}

/// Time since the session last signed or was opened; it counts as used from now on.
fn idle_since_last(session: CK_SESSION_HANDLE) -> Duration {
    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    used.get_or_insert_default().insert(session, now).map_or(Duration::ZERO, |last| now.duration_since(last))
}

/// CKA_ID of an object; empty if it has none. Read once, since the benches count this module's time as the token's; a
/// handle refers to the same object for the lifetime of the process.
fn id_of(session: CK_SESSION_HANDLE, handle: CK_OBJECT_HANDLE) -> Vec<u8> {
    static KNOWN: Mutex<Option<HashMap<CK_OBJECT_HANDLE, Vec<u8>>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(id) = known.get_or_insert_default().get(&handle) {
        return id.clone();
    }
    let id = read_id(session, handle);
    if !id.is_empty() {
        known.get_or_insert_default().insert(handle, id.clone());
    }
    id
}

fn read_id(session: CK_SESSION_HANDLE, handle: CK_OBJECT_HANDLE) -> Vec<u8> {
    let mut id = [0_u8; 64];
    let mut attribute = CK_ATTRIBUTE {
        type_: CKA_ID,
        pValue: id.as_mut_ptr().cast(),
        ulValueLen: CK_ULONG::try_from(id.len()).unwrap_or(0),
    };
    let Some(function) = real().and_then(|real| real.C_GetAttributeValue) else { return Vec::new() };
    // SAFETY: one attribute, with a buffer of the given length.
    let rv = unsafe { function(session, handle, &raw mut attribute, 1) };
    let length = usize::try_from(attribute.ulValueLen).unwrap_or(usize::MAX);
    id.get(..length).filter(|_| rv == CKR_OK).map(<[u8]>::to_vec).unwrap_or_default()
}

unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    if let Some(Action::Sessions(most)) = control::peek("C_OpenSession") {
        if OPEN_SESSIONS.load(Ordering::Relaxed) >= most {
            control::note("fault C_OpenSession sessions");
            return CKR_SESSION_COUNT;
        }
    } else if let Some(rv) = before("C_OpenSession") {
        return rv;
    }
    let Some(function) = real().and_then(|real| real.C_OpenSession) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's arguments, unchanged.
    let rv = unsafe { function(slot, flags, application, notify, session) };
    if rv == CKR_OK {
        OPEN_SESSIONS.fetch_add(1, Ordering::Relaxed);
        WAS_REMOVED.store(false, Ordering::Relaxed);
        LAST_SLOT.store(slot, Ordering::Relaxed);
        // SAFETY: the real module has just written to it.
        let session = unsafe { *session };
        LAST_SESSION.store(session, Ordering::Relaxed);
        let _new = idle_since_last(session);
    }
    rv
}

unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    if let Some(rv) = before("C_CloseSession") {
        return rv;
    }
    let Some(function) = real().and_then(|real| real.C_CloseSession) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the caller's argument, unchanged.
    let rv = unsafe { function(session) };
    if rv == CKR_OK {
        OPEN_SESSIONS.fetch_sub(1, Ordering::Relaxed);
    }
    rv
}

unsafe extern "C" {
    /// prctl(2) of the C library, which is linked anyway.
    fn prctl(option: c_int, ...) -> c_int;
}

/// Makes this thread's sleeps exact: the kernel may otherwise add 50 us, which matters where a call takes 5 ms.
fn exact_timers() {
    const PR_SET_TIMERSLACK: c_int = 29;
    thread_local! {
        // SAFETY: this option takes one number, nanoseconds, and affects only the calling thread's timers.
        static SET: c_int = unsafe { prctl(PR_SET_TIMERSLACK, 1 as c_ulong) };
    }
    SET.with(|_| ());
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_length: CK_ULONG,
    signature: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let began = Instant::now();
    control::note_call("C_Sign");
    let action = match control::peek("C_Sign") {
        // A call that only queries the length does not count against the limit.
        Some(action @ (Action::Long | Action::Takes(_) | Action::Truncate | Action::Wrong)) if signature.is_null() => {
            Some(action)
        }
        _ => match control::fault("C_Sign") {
            Some(Action::Return(rv)) => return rv,
            Some(Action::Removed) => return CKR_DEVICE_REMOVED,
            action => action,
        },
    };
    let Some(function) = real().and_then(|real| real.C_Sign) else { return CKR_FUNCTION_NOT_SUPPORTED };
    if !signature.is_null() {
        let signing = SIGNING.lock().unwrap_or_else(PoisonError::into_inner);
        let id = signing.as_ref().and_then(|signing| signing.get(&session)).cloned().unwrap_or_default();
        drop(signing);
        // SAFETY: the caller's input with the given length.
        let input = unsafe { std::slice::from_raw_parts(data, usize::try_from(data_length).unwrap_or(0)) };
        control::note_signature(&id, input);
    }
    // SAFETY: the caller's arguments, unchanged.
    let rv = unsafe { function(session, data, data_length, signature, length) };
    let _used = idle_since_last(session);
    if rv != CKR_OK {
        return rv;
    }
    match action {
        Some(Action::Wrong) if !signature.is_null() => {
            // SAFETY: the real module has just written a signature of this length, which is never empty.
            unsafe { *signature.add(usize::try_from(*length).unwrap_or(1) - 1) ^= 1 };
        }
        // SAFETY: the real module has just written the length.
        Some(Action::Truncate) if !signature.is_null() => unsafe { *length -= 1 },
        Some(Action::Takes(all)) if !signature.is_null() => {
            exact_timers();
            std::thread::sleep(all.saturating_sub(began.elapsed()));
        }
        Some(Action::Long) => {
            if !signature.is_null() {
                // SAFETY: the caller's buffer has the length returned by the query, which is one byte more.
                unsafe { *signature.add(usize::try_from(*length).unwrap_or(0)) = 0x5a };
            }
            // SAFETY: the real module has just written the length.
            unsafe { *length += 1 };
        }
        _ => {}
    }
    rv
}
