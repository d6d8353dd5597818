//! Calls that describe a library, its slots and its tokens.
//!
//! The binding rejects a whole description for one malformed field (opencryptoki's clock reads `        05:49:45`) and
//! allocates whatever a library returns as a count. Here the structures are returned as filled by the library; `token`
//! reads them field by field. The library is the one that the binding has loaded: opening its path again adds a
//! reference.

use std::{ffi::OsStr, fmt, path::Path, sync::Arc};

use cryptoki::{
    context::Function,
    error::{Error, Rv, RvError},
    slot::Slot,
};
use cryptoki_sys::{
    CK_BBOOL, CK_C_INITIALIZE_ARGS, CK_FUNCTION_LIST, CK_INFO, CK_MECHANISM_TYPE, CK_RV, CK_SLOT_ID, CK_SLOT_INFO,
    CK_TOKEN_INFO, CK_TRUE, CK_ULONG, CKF_OS_LOCKING_OK, CKR_OK, Pkcs11,
};

/// Maximum number of entries of a list: more slots or mechanisms than any library has.
const MOST: usize = 4096;

/// The functions of a loaded library.
#[derive(Clone)]
pub(super) struct Functions {
    list: CK_FUNCTION_LIST,
    /// The functions are valid while the library is loaded.
    _library: Arc<Pkcs11>,
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Functions").finish_non_exhaustive()
    }
}

impl Functions {
    /// The functions of a library that the binding has loaded from this path.
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        let library = open(path.as_os_str())?;
        if library.C_GetFunctionList.is_err() {
            return Err(Error::MissingSymbol("C_GetFunctionList"));
        }
        let mut list = std::ptr::null_mut();
        #[expect(unsafe_code, reason = "the binding does not return the functions of a library")]
        // SAFETY: the pointer is to a local, as C_GetFunctionList requires (PKCS#11 v3.1, section 5.4); it may be
        // called at any time.
        let rv = unsafe { library.C_GetFunctionList(&raw mut list) };
        Rv::from(rv).into_result(Function::GetFunctionList)?;
        if list.is_null() {
            return Err(Error::NullFunctionPointer);
        }
        #[expect(unsafe_code, reason = "the binding does not return the functions of a library")]
        // SAFETY: the library returned CKR_OK, so its list is valid while it is loaded.
        let list = unsafe { *list };
        Ok(Self { list, _library: Arc::new(library) })
    }

    /// C_GetInfo.
    pub(super) fn info(&self) -> Result<CK_INFO, Error> {
        let function = self.list.C_GetInfo.ok_or(Error::NullFunctionPointer)?;
        #[expect(unsafe_code, reason = "the binding rejects the structure for one malformed field")]
        // SAFETY: the pointer is to a structure of the type that the function fills.
        fill(Function::GetInfo, |info: *mut CK_INFO| unsafe { function(info) })
    }

    /// C_GetSlotInfo.
    pub(super) fn slot_info(&self, slot: Slot) -> Result<CK_SLOT_INFO, Error> {
        let function = self.list.C_GetSlotInfo.ok_or(Error::NullFunctionPointer)?;
        #[expect(unsafe_code, reason = "the binding rejects the structure for one malformed field")]
        // SAFETY: as in `info`.
        fill(Function::GetSlotInfo, |info: *mut CK_SLOT_INFO| unsafe { function(slot.into(), info) })
    }

    /// C_GetTokenInfo.
    pub(super) fn token_info(&self, slot: Slot) -> Result<CK_TOKEN_INFO, Error> {
        let function = self.list.C_GetTokenInfo.ok_or(Error::NullFunctionPointer)?;
        #[expect(unsafe_code, reason = "the binding rejects the structure for one malformed field")]
        // SAFETY: as in `info`.
        fill(Function::GetTokenInfo, |info: *mut CK_TOKEN_INFO| unsafe { function(slot.into(), info) })
    }

    /// C_GetSlotList: the slots with a token, which may change between two calls.
    pub(super) fn slots_with_token(&self) -> Result<Vec<Slot>, Error> {
        match self.list_slots_with_token() {
            // p11-kit's client returns another list with a state of its own each time.
            Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => {
                self.initialize()?;
                self.list_slots_with_token()
            }
            listed => listed,
        }
    }

    fn list_slots_with_token(&self) -> Result<Vec<Slot>, Error> {
        let function = self.list.C_GetSlotList.ok_or(Error::NullFunctionPointer)?;
        let present: CK_BBOOL = CK_TRUE;
        #[expect(unsafe_code, reason = "the binding allocates whatever a library gives as a count")]
        let slots = list(Function::GetSlotList, |slots: *mut CK_SLOT_ID, count| {
            // SAFETY: the pointers are to a count, and to that many numbers, or null.
            unsafe { function(present, slots, count) }
        })?;
        slots.into_iter().map(Slot::try_from).collect()
    }

    /// C_Initialize with the arguments of the binding, except for a library's own parameters.
    fn initialize(&self) -> Result<(), Error> {
        let function = self.list.C_Initialize.ok_or(Error::NullFunctionPointer)?;
        let mut arguments = CK_C_INITIALIZE_ARGS { flags: CKF_OS_LOCKING_OK, ..CK_C_INITIALIZE_ARGS::default() };
        #[expect(unsafe_code, reason = "the binding does not use this list of functions")]
        // SAFETY: the pointer is to the structure that the function reads during the call (PKCS#11 v3.1, section 5.4).
        let rv = unsafe { function((&raw mut arguments).cast()) };
        match Rv::from(rv) {
            Rv::Error(RvError::CryptokiAlreadyInitialized) => Ok(()),
            rv => rv.into_result(Function::Initialize),
        }
    }

    /// C_GetMechanismList.
    pub(super) fn mechanisms(&self, slot: Slot) -> Result<Vec<CK_MECHANISM_TYPE>, Error> {
        let function = self.list.C_GetMechanismList.ok_or(Error::NullFunctionPointer)?;
        #[expect(unsafe_code, reason = "the binding allocates whatever a library gives as a count")]
        list(Function::GetMechanismList, |mechanisms: *mut CK_MECHANISM_TYPE, count| {
            // SAFETY: as in `slots_with_token`.
            unsafe { function(slot.into(), mechanisms, count) }
        })
    }
}

#[expect(unsafe_code, reason = "loading a library runs its initialization code")]
fn open(path: &OsStr) -> Result<Pkcs11, Error> {
    // SAFETY: the binding has loaded the library before, so no initialization code runs now.
    unsafe { Pkcs11::new(path) }.map_err(Error::LibraryLoading)
}

fn fill<T: Default>(function: Function, call: impl FnOnce(*mut T) -> CK_RV) -> Result<T, Error> {
    let mut filled = T::default();
    Rv::from(call(&raw mut filled)).into_result(function)?;
    Ok(filled)
}

/// Queries the number of entries, then the entries; repeats this if there are more by then.
fn list<T: Copy + Default>(
    function: Function,
    mut call: impl FnMut(*mut T, *mut CK_ULONG) -> CK_RV,
) -> Result<Vec<T>, Error> {
    let mut count: CK_ULONG = 0;
    Rv::from(call(std::ptr::null_mut(), &raw mut count)).into_result(function)?;
    for _ in 0..3 {
        let room = usize::try_from(count).map_or(MOST, |count| count.min(MOST));
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut entries = vec![T::default(); room];
        count = CK_ULONG::try_from(room)?;
        let rv = call(entries.as_mut_ptr(), &raw mut count);
        if rv == CKR_OK {
            entries.truncate(usize::try_from(count)?);
            return Ok(entries);
        }
        if !matches!(Rv::from(rv), Rv::Error(RvError::BufferTooSmall)) || room == MOST {
            Rv::from(rv).into_result(function)?;
        }
    }
    Err(Error::Pkcs11(RvError::BufferTooSmall, function))
}

#[cfg(test)]
mod tests {
    use cryptoki_sys::{CKR_BUFFER_TOO_SMALL, CKR_DEVICE_ERROR};

    use super::*;

    /// Reads a list of `real` entries from a library that announces another number.
    fn read(announced: CK_ULONG, real: usize, rv: CK_RV) -> Result<Vec<u64>, Error> {
        list(Function::GetSlotList, |entries: *mut u64, count: *mut CK_ULONG| {
            #[expect(unsafe_code, reason = "a library writes through pointers")]
            // SAFETY: `list` passes a count, and that many entries or null.
            unsafe {
                if entries.is_null() {
                    *count = announced;
                    return CKR_OK;
                }
                let room = usize::try_from(*count).unwrap();
                *count = CK_ULONG::try_from(real).unwrap();
                if real > room {
                    return CKR_BUFFER_TOO_SMALL;
                }
                (0..real).for_each(|at| *entries.add(at) = 7);
                rv
            }
        })
    }

    #[test]
    fn wrong_count_of_a_list_is_survived() {
        assert_eq!(read(3, 3, CKR_OK).unwrap(), [7; 3]);
        assert_eq!(read(3, 2, CKR_OK).unwrap(), [7; 2], "one was removed meanwhile");
        assert_eq!(read(3, 5, CKR_OK).unwrap(), [7; 5], "some were added meanwhile");
        assert_eq!(read(0, 0, CKR_OK).unwrap(), [0; 0]);
        assert_eq!(read(CK_ULONG::MAX, 2, CKR_OK).unwrap(), [7; 2], "no library has so many");
        assert!(matches!(read(3, 5000, CKR_OK), Err(Error::Pkcs11(RvError::BufferTooSmall, _))));
        assert!(matches!(read(3, 3, CKR_DEVICE_ERROR), Err(Error::Pkcs11(RvError::DeviceError, _))));
    }
}
