//! [`Key`]: the secret that clients of a server must send.

use std::ffi::OsStr;

use anyhow::Result;
use stage_kit::UsageError;
use subtle::ConstantTimeEq as _;

use crate::problem::Problem;

/// Where the key is looked for if no flag says otherwise.
const VARIABLE: &str = "LMM_SERVE_API_KEY";

/// A secret that no log shows.
#[derive(Clone)]
pub(crate) struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(hidden)")
    }
}

impl Key {
    /// The key in the environment variable that a flag names, which has to be set then, or else in `LMM_SERVE_API_KEY`,
    /// if it is.
    ///
    /// # Errors
    /// When the variable that was named is not set, or the one that is set holds no key: a server that was meant to have a key has one.
    pub(crate) fn from_env(named: Option<&str>) -> Result<Option<Self>, UsageError> {
        let variable = named.unwrap_or(VARIABLE);
        match (std::env::var_os(variable), named) {
            (Some(value), _) => Self::read(variable, &value).map(Some),
            (None, Some(name)) => {
                Err(UsageError::new(format!("--api-key-env {name}: that variable is not set")))
            }
            (None, None) => Ok(None),
        }
    }

    fn read(variable: &str, value: &OsStr) -> Result<Self, UsageError> {
        let key = value.to_str().map(str::trim).filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| UsageError::new(format!("{variable} is set, but holds no key")))?;
        Ok(Self(key.to_owned()))
    }

    /// Checks an `Authorization` header.
    ///
    /// # Errors
    /// 401 when there is none, or it holds another key. How long that takes does not tell where they differ.
    pub(crate) fn check(&self, authorization: Option<&[u8]>) -> Result<(), Problem> {
        let Some(sent) = authorization.and_then(bearer) else {
            return Err(Problem::key("no API key was sent; send it in the header Authorization: Bearer KEY"));
        };
        if bool::from(self.0.as_bytes().ct_eq(sent)) {
            return Ok(());
        }
        Err(Problem::key("the API key is not the one this server was started with"))
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_a_key_is_no_open_door() {
        use std::os::unix::ffi::OsStrExt as _;
        assert_eq!(Key::read("K", OsStr::new(" secret\n")).unwrap().0, "secret");
        for value in [&b""[..], b" \t", b"\xFFsecret"] {
            let error = Key::read("K", OsStr::from_bytes(value)).unwrap_err();
            assert_eq!(error.to_string(), "K is set, but holds no key");
        }
    }

    #[test]
    fn only_the_key_itself_opens() {
        let key = Key("secret".into());
        for good in ["Bearer secret", "bearer  secret "] {
            assert!(key.check(Some(good.as_bytes())).is_ok(), "{good}");
        }
        for bad in [
            "Bearer",
            "Bearer ",
            "secret",
            "Basic secret",
            "Bearer secre",
            "Bearer secrets",
            "Bearer Secret",
            "",
        ] {
            assert!(key.check(Some(bad.as_bytes())).is_err(), "{bad}");
        }
        assert!(key.check(None).unwrap_err().message.contains("no API key"));
        assert_eq!(format!("{key:?}"), "Key(hidden)");
    }
}
