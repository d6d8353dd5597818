//! The state document in a file: of one daemon, or in a directory that all replicas share.
//!
//! Writers hold an exclusive lock (flock(2)) on a file next to it while they compare and replace it. Readers need no lock,
//! because the file is replaced as a whole. It is looked at several times a second, which also works on network file
//! systems, where inotify(7) reports no changes by other machines.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::libc::O_NOFOLLOW;

use super::{
    state::Document,
    store::{Store, StoreError, Stored, parse},
};
use crate::signer::BoxFuture;
use audit_log::{record::hex, tree::sha256};
use process::{
    error::chain,
    files::{self, read_input},
};

/// Maximum size of the file: more than a CRL's limit of entries.
const FILE_MAX: usize = 16 << 20;

/// Interval at which the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A file with the state document.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// What identified the file at the last read.
    seen: Mutex<Option<Identity>>,
}

/// Changes with each replacement of a file.
type Identity = (u64, u64, i64, i64, u64);

impl FileStore {
    /// The store at a path. Nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::default() }
    }

    fn unavailable(&self, error: &io::Error, remedy: &'static str) -> StoreError {
        StoreError::Unavailable { place: self.place(), reason: chain(error), remedy }
    }

    fn identity(&self) -> Option<Identity> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
    }

    fn content(&self) -> Result<Option<Vec<u8>>, StoreError> {
        match read_input(&self.path, FILE_MAX) {
            Ok(content) if content.len() > FILE_MAX => {
                Err(StoreError::Malformed { place: self.place(), reason: "it is longer than 16 MiB".to_owned() })
            }
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.directory().is_dir() => Ok(None),
            Err(error) => Err(self.unavailable(&error, "make it readable for the daemon's user")),
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn read_now(&self) -> Result<Stored, StoreError> {
        let identity = self.identity();
        let content = self.content()?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = identity;
        let Some(content) = content else { return Ok(Stored { document: Document::default(), version: None }) };
        let document = parse(&self.place(), &content)?;
        Ok(Stored { document, version: Some(version(&content)) })
    }

    fn replace_now(&self, content: &[u8], expected: Option<&str>) -> Result<(), StoreError> {
        let unwritable = |error: &io::Error| {
            self.unavailable(
                error,
                "make its directory writable for the daemon's user, and run the command as that user",
            )
        };
        let _lock = self.lock().map_err(|error| unwritable(&error))?;
        let held = self.content()?;
        if held.as_deref().map(version).as_deref() != expected {
            return Err(StoreError::Conflict);
        }
        files::replace(&self.path, content).map_err(|error| unwritable(&error))?;
        self.keep_owner().map_err(|error| unwritable(&error))
    }

    fn lock(&self) -> io::Result<File> {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path)?;
        self.give(&file)?;
        file.lock()?;
        Ok(file)
    }

    fn keep_owner(&self) -> io::Result<()> {
        self.give(&File::open(&self.path)?)
    }

    /// Gives a file that root made to the owner of its directory, who is the daemon's user.
    fn give(&self, file: &File) -> io::Result<()> {
        let owner = std::fs::metadata(self.directory())?;
        if nix::unistd::geteuid().is_root() && file.metadata()?.uid() != owner.uid() {
            std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    }
}

fn version(content: &[u8]) -> String {
    hex(&sha256(&[content]))
}

impl Store for FileStore {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn capacity(&self) -> Option<usize> {
        Some(FILE_MAX)
    }

    fn read(&self) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(async { self.read_now() })
    }

    fn replace<'a>(&'a self, content: &'a [u8], version: Option<&'a str>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { tokio::task::block_in_place(|| self.replace_now(content, version)) })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                if self.identity() != seen {
                    return;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            state::{ChangeError, Order},
            store::update,
        },
        *,
    };
    use pki::crl::Reason;
    use std::{sync::Arc, time::SystemTime};

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error(transparent)]
        Change(#[from] ChangeError),
        #[error(transparent)]
        Store(#[from] StoreError),
    }

    async fn block(store: &FileStore, selector: &str) -> Result<Document, Failed> {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let order = Order { by: "a".to_owned(), at, selector: selector.to_owned(), reason: Reason::Unspecified };
        let block = || Some((selector.parse().unwrap(), None));
        update(store, |document| Ok(document.revoke(&order, &[], block())?)).await.map(|(document, _)| document)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_by_many_writers_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("revocations.json");
        let tasks = (0..8).map(|number| {
            let store = FileStore::new(path.clone());
            tokio::spawn(async move { block(&store, &format!("namespace=n{number}")).await.unwrap() })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let stored = FileStore::new(path).read().await.unwrap();
        assert_eq!((stored.document.revision, stored.document.blocks.len()), (8, 8));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn change_by_another_process_is_noticed_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("revocations.json");
        let (one, other) = (Arc::new(FileStore::new(path.clone())), FileStore::new(path));
        let read = one.read().await.unwrap();
        assert_eq!(read, Stored { document: Document::default(), version: None });
        let waiting = Arc::clone(&one);
        let noticed = tokio::spawn(async move { waiting.changed().await });
        block(&other, "namespace=shop").await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), noticed).await.unwrap().unwrap();
        let content = serde_json::to_vec(&Document::default()).unwrap();
        assert_eq!(one.replace(&content, read.version.as_deref()).await, Err(StoreError::Conflict));
        let read = one.read().await.unwrap();
        assert_eq!(read.document.revision, 1);
        one.replace(&content, read.version.as_deref()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn unreadable_and_foreign_documents_are_errors_with_remedies() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("revocations.json");
        for (content, expected) in [
            ("", "it is not a state document of revocation"),
            ("{}", "missing field `v`"),
            (r#"{"v":2}"#, "its format is version 2; this program reads version 1; upgrade this program"),
            (r#"{"v":1,"revision":1,"more":1}"#, "unknown field `more`"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = FileStore::new(path.clone()).read().await.unwrap_err().to_string();
            assert!(error.contains("revocations.json: ") && error.contains(expected), "{error}");
        }
        let missing = FileStore::new(directory.path().join("missing/revocations.json")).read().await.unwrap_err();
        assert!(missing.to_string().contains("readable for the daemon's user"), "{missing}");
    }
}
