//! Arguments that select tokens and provide PINs: a file, a descriptor or a prompt, never the command line or the
//! environment.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use anyhow::{Context, bail};
use secrecy::SecretString;

use super::ceremony::shares;
use process::output;
use token::{
    Module, RvError, Session, Token, TokenUri, calls,
    key::{Accepted, Weakness},
    pin,
};

/// One token and its PIN.
#[derive(Clone, Debug, clap::Args)]
pub struct TokenArgs {
    /// The token: pkcs11:token=LABEL?module-path=/path/to/module.so (RFC 7512); pin-source=file:... may name the PIN's file
    #[arg(long, value_name = "URI")]
    pub token: TokenUri,
    /// The PIN.
    #[command(flatten)]
    pub pin: PinArgs,
}

/// Several tokens and their PINs.
#[derive(Clone, Debug, clap::Args)]
pub struct TokensArgs {
    /// A token: pkcs11:token=LABEL?module-path=/path/to/module.so (RFC 7512); repeat it for each further token
    #[arg(long = "token", value_name = "URI", required = true)]
    pub tokens: Vec<TokenUri>,
    /// A file with the user PIN: one for all tokens, or one each in their order [default: pin-source, otherwise a prompt]
    #[arg(long, value_name = "FILE")]
    pin_file: Vec<PathBuf>,
    /// An open descriptor from which the user PIN of the only token is read
    #[arg(long, value_name = "NUMBER", conflicts_with = "pin_file")]
    pin_fd: Option<u32>,
}

/// Where one token's PIN comes from.
#[derive(Clone, Debug, clap::Args)]
pub struct PinArgs {
    /// A file with the user PIN [default: the URI's pin-source, otherwise a prompt]
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    /// An open descriptor from which the user PIN is read
    #[arg(long, value_name = "NUMBER", conflicts_with = "pin_file")]
    pin_fd: Option<u32>,
    /// A file with one holder's share of the PIN (`ceremony split-pin`); repeat it for each share
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pin_file", "pin_fd"])]
    pin_share: Vec<PathBuf>,
    /// Ask for the shares of the PIN, one holder after the other
    #[arg(long, conflicts_with_all = ["pin_file", "pin_fd", "pin_share"])]
    pin_shares: bool,
}

/// An opened token, and its PIN, which has not been tried.
#[derive(Debug)]
pub struct Opened {
    /// The token.
    pub token: Token,
    /// The library, which must outlive the token.
    pub module: Module,
    /// The PIN; `None` for a token that requires no login.
    pub pin: Option<SecretString>,
}

impl TokenArgs {
    /// Finds the token and reads the PIN.
    ///
    /// # Errors
    /// If the module cannot be loaded, no or several tokens match, or there is no PIN.
    pub fn open(&self) -> anyhow::Result<Opened> {
        self.pin.open(&self.token)
    }

    /// Whether a PIN is given; without one, only public objects are visible.
    #[must_use]
    pub fn names_pin(&self) -> bool {
        self.pin.is_given() || self.token.pin_source().is_some()
    }
}

impl PinArgs {
    /// Finds a token and reads its PIN, which is not tried yet.
    ///
    /// # Errors
    /// If the module cannot be loaded, no or several tokens match, or there is no PIN.
    pub fn open(&self, uri: &TokenUri) -> anyhow::Result<Opened> {
        let given = self.is_given() || uri.pin_source().is_some();
        open(uri, given, |label| self.read(uri.pin_source(), label))
    }

    /// Reads the PIN of the token with a label; `default` is the file to read if no argument names another source.
    ///
    /// # Errors
    /// If there is no PIN, it cannot be read, or its shares do not restore it.
    pub fn read(&self, default: Option<&Path>, label: &str) -> anyhow::Result<SecretString> {
        if !self.pin_share.is_empty() {
            return shares::assemble(&shares::read_files(&self.pin_share)?);
        }
        if self.pin_shares {
            return shares::assemble(&shares::ask()?);
        }
        read_pin(self.pin_file.as_deref().or(default), self.pin_fd, label)
    }

    /// Whether an argument says where the PIN comes from.
    fn is_given(&self) -> bool {
        self.pin_file.is_some() || self.pin_fd.is_some() || !self.pin_share.is_empty() || self.pin_shares
    }
}

impl TokensArgs {
    /// Finds all tokens and reads their PINs; a failure affects only its token.
    ///
    /// # Errors
    /// If the number of PIN files is neither one nor the number of tokens.
    pub fn open(&self) -> anyhow::Result<Vec<anyhow::Result<Opened>>> {
        let (tokens, files) = (self.tokens.len(), self.pin_file.len());
        if files > 1 && files != tokens {
            bail!("--pin-file is given {files} times for {tokens} tokens; give it once, or once for each token");
        }
        if self.pin_fd.is_some() && tokens > 1 {
            bail!("--pin-fd goes with one token only; use --pin-file");
        }
        let mut duplicates = self.tokens.iter().enumerate();
        if let Some((_, twice)) = duplicates.find(|(i, uri)| self.tokens.iter().skip(i + 1).any(|other| other == *uri))
        {
            bail!("--token {twice} is given twice");
        }
        let file = |index: usize| self.pin_file.get(index).or_else(|| self.pin_file.first().filter(|_| files == 1));
        let open_one = |(index, uri): (usize, &TokenUri)| {
            let file = file(index).map(PathBuf::as_path).or(uri.pin_source());
            open(uri, file.is_some() || self.pin_fd.is_some(), |label| read_pin(file, self.pin_fd, label))
        };
        Ok(self.tokens.iter().enumerate().map(open_one).collect())
    }
}

/// The weaknesses of a key that the operator accepts.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    next_help_heading = "Accepted weaknesses of the key (recorded in the receipt, a warning in `check` for ever)"
)]
pub struct WeaknessArgs {
    /// It may leave the token (CKA_EXTRACTABLE is true, or the token wraps it all the same)
    #[arg(long)]
    allow_extractable: bool,
    /// It may be read in the clear (CKA_SENSITIVE is false)
    #[arg(long)]
    allow_not_sensitive: bool,
    /// The token does not reveal CKA_SENSITIVE, CKA_EXTRACTABLE or CKA_SIGN
    #[arg(long)]
    allow_unreadable_attributes: bool,
    /// It may decrypt (CKA_DECRYPT)
    #[arg(long)]
    allow_decrypt: bool,
    /// It may derive keys (CKA_DERIVE)
    #[arg(long)]
    allow_derive: bool,
    /// It may unwrap keys (CKA_UNWRAP)
    #[arg(long)]
    allow_unwrap: bool,
}

impl WeaknessArgs {
    /// Those that are given.
    #[must_use]
    pub fn accepted(&self) -> Accepted {
        let flags = [
            (self.allow_extractable, Weakness::Extractable),
            (self.allow_not_sensitive, Weakness::NotSensitive),
            (self.allow_unreadable_attributes, Weakness::UnreadableAttributes),
            (self.allow_decrypt, Weakness::Decrypt),
            (self.allow_derive, Weakness::Derive),
            (self.allow_unwrap, Weakness::Unwrap),
        ];
        flags.into_iter().filter_map(|(given, weakness)| given.then_some(weakness)).collect()
    }
}

impl Opened {
    /// As [`Opened::login`] with a read-write session if the token allows one; otherwise also why it does not.
    ///
    /// # Errors
    /// As [`Opened::login`].
    pub fn login_to_write(&self) -> anyhow::Result<(Session, Option<String>)> {
        if self.token.info().write_protected {
            return Ok((self.login(false)?, Some("the token is write-protected".to_owned())));
        }
        let session = match self.token.open_session(true) {
            Ok(session) => session,
            Err(error) if error.is(RvError::TokenWriteProtected) || error.is(RvError::SessionReadOnly) => {
                return Ok((self.login(false)?, Some(error.to_string())));
            }
            Err(error) => return Err(error.into()),
        };
        self.token.login(&session, self.pin.as_ref())?;
        Ok((session, None))
    }

    /// Opens a session and logs in: the PIN is tried once.
    ///
    /// # Errors
    /// If no session can be opened, or the PIN is rejected.
    pub fn login(&self, rw: bool) -> anyhow::Result<Session> {
        let session = self.token.open_session(rw)?;
        self.token.login(&session, self.pin.as_ref())?;
        Ok(session)
    }
}

/// When a call counts as hanging.
const HANGING: Duration = Duration::from_secs(10);

/// Says when the token's library does not return from a call, which may last for minutes: a command has no watchdog that
/// would end the call, since the library may be changing the token.
fn warn_of_hanging_calls() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let watch = || {
            let mut warned = false;
            loop {
                let call = calls::in_progress().filter(|(_, since)| *since >= HANGING);
                if let Some((function, _)) = call.filter(|_| !warned) {
                    output::Output::Text.warn(&format!(
                        "{} has not returned for {} s; check the HSM and the connection to it by the vendor's tool, or \
                         interrupt this command",
                        function.name(),
                        HANGING.as_secs()
                    ));
                }
                warned = call.is_some();
                std::thread::sleep(Duration::from_secs(1));
            }
        };
        // Without the thread, the command works as well.
        let _ = std::thread::Builder::new().name("hanging-calls".to_owned()).spawn(watch);
    });
}

/// Finds a token, and has its PIN read if it needs one.
fn open(
    uri: &TokenUri,
    pin_is_given: bool,
    read: impl FnOnce(&str) -> anyhow::Result<SecretString>,
) -> anyhow::Result<Opened> {
    let (module, token) = find(uri)?;
    let pin = (!token.skips_login(pin_is_given)).then(|| read(&token.info().label)).transpose()?;
    Ok(Opened { token, module, pin })
}

fn find(uri: &TokenUri) -> anyhow::Result<(Module, Token)> {
    warn_of_hanging_calls();
    let module = Module::load_with(module_path(uri)?, uri.library_parameters())?;
    let token = module.find_token(uri)?;
    Ok((module, token))
}

/// The PIN from a descriptor, otherwise from a file, otherwise typed at the terminal.
fn read_pin(file: Option<&Path>, descriptor: Option<u32>, label: &str) -> anyhow::Result<SecretString> {
    Ok(match (file, descriptor) {
        (_, Some(number)) => {
            let path = PathBuf::from(format!("/dev/fd/{number}"));
            let file = File::open(&path).with_context(|| format!("--pin-fd {number} cannot be read"))?;
            pin::read_open(file, &path)?
        }
        (Some(path), None) => pin::read(path)?,
        (None, None) if output::interactive() => {
            let typed = zeroize::Zeroizing::new(rpassword::prompt_password(format!("User PIN of token {label}: "))?);
            SecretString::from(Box::<str>::from(typed.as_str()))
        }
        (None, None) => bail!(
            "no PIN for token {label}; give --pin-file, or pin-source=file:... in the token URI, or run it at a terminal"
        ),
    })
}

/// What is wrong with the label of a new key (CKA_LABEL), which must fit on one line of output.
pub fn label_problem(label: &str) -> Option<&'static str> {
    let fit = (1..=64).contains(&label.len()) && !label.chars().any(char::is_control);
    (!fit).then_some("--label must have 1 to 64 bytes, none of them a control character")
}

/// The module's path, which every URI must contain.
///
/// # Errors
/// If the URI has none.
pub fn module_path(uri: &TokenUri) -> anyhow::Result<&Path> {
    uri.module_path().with_context(|| {
        format!("the token URI {uri} names no module; add ?module-path=/path/to/the/vendor's/module.so")
    })
}
