//! What an error of the client means for the caller.

use kvtile_shared::store::{SharedStoreError, StoreErrorKind, StoreOperation};
use object_store::Error;

/// The error of a call. Messages of the client have no credentials: they go into headers, and it
/// leaves out URLs that have any.
pub(crate) fn failed(operation: StoreOperation, error: Error) -> SharedStoreError {
    let kind = match &error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            StoreErrorKind::Configuration
        }
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. } => {
            StoreErrorKind::Refused
        }
        Error::Generic { .. } if is_refusal(&error) => StoreErrorKind::Refused,
        _ => StoreErrorKind::Transient,
    };
    SharedStoreError::new(kind, operation, one_line(&error)).caused_by(error)
}

/// Whether the server's answer is that of a wrong request: status 400 to 499, but for those that
/// mean "later".
pub(crate) fn is_refusal(error: &Error) -> bool {
    let later = [408, 425, 429];
    status(error).is_some_and(|status| (400..500).contains(&status) && !later.contains(&status))
}

/// Whether the server's answer is that a range begins behind the end of the object.
pub(crate) fn is_past_end(error: &Error) -> bool {
    status(error) == Some(416)
}

/// The status of the server's answer.
fn status(error: &Error) -> Option<u16> {
    let text = error.to_string();
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// Messages of servers are documents of several lines; the first 400 characters state what is wrong.
pub(crate) fn one_line(error: &Error) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.into(),
        }
    }

    #[test]
    fn the_status_of_an_answer_decides_whether_to_try_again() {
        let kind = |text: &str| failed(StoreOperation::Read, generic(text)).kind();
        let non_2xx =
            |status: &str| format!("x - Server returned non-2xx status code: {status}: y");
        assert_eq!(kind(&non_2xx("400 Bad Request")), StoreErrorKind::Refused);
        assert_eq!(kind(&non_2xx("413 Too Large")), StoreErrorKind::Refused);
        assert!(is_past_end(&generic(&non_2xx("416 Range Not Satisfiable"))));
        assert!(!is_past_end(&generic(&non_2xx("404 Not Found"))));
        for later in ["429 Too Many Requests", "503 Slow Down", "408 Timeout"] {
            assert_eq!(kind(&non_2xx(later)), StoreErrorKind::Transient, "{later}");
        }
        assert_eq!(kind("connection refused"), StoreErrorKind::Transient);
    }

    #[test]
    fn a_message_is_one_short_line() {
        let error = failed(StoreOperation::Read, generic(&"<a>\n  é".repeat(500)));
        let text = error.to_string();
        assert!(text.chars().count() < 420 && !text.contains('\n'), "{text}");
    }
}
