//! Between the store's words and containerd's.

use super::snapshots::{Info, Kind};
use jiff::Timestamp;
use tonic::{Code, Status};
use vellum_store::{SnapshotKind, SnapshotRow};

pub(super) fn info(row: SnapshotRow) -> Info {
    let kind = match row.kind {
        SnapshotKind::Active => Kind::Active,
        SnapshotKind::View => Kind::View,
        SnapshotKind::Committed => Kind::Committed,
    };
    Info {
        name: row.key,
        parent: row.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(time(row.created)),
        updated_at: Some(time(row.updated)),
        labels: row.labels,
    }
}

fn time(time: Timestamp) -> prost_types::Timestamp {
    // Both count in whole seconds towards the past and add nanoseconds towards the future; jiff's may both be negative.
    let nanoseconds = time.as_nanosecond();
    prost_types::Timestamp {
        seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).unwrap_or_default(),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or_default(),
    }
}

/// An error as containerd's clients tell them apart (errdefs): the status says what kind, the text everything.
pub(super) fn status(error: &vellum_store::Error) -> Status {
    use vellum_store::Code as Store;
    let code = match error.code() {
        Store::NotFound => Code::NotFound,
        Store::Exists => Code::AlreadyExists,
        Store::InUse => Code::FailedPrecondition,
        Store::Invalid | Store::Archive => Code::InvalidArgument,
        Store::Full => Code::ResourceExhausted,
        Store::Damaged => Code::DataLoss,
        Store::Unsupported => Code::Unimplemented,
        _ => Code::Internal,
    };
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    if let Some(hint) = error.hint() {
        text.push_str("; ");
        text.push_str(hint);
    }
    Status::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_times_before_1970_count_forward() {
        let at = |seconds, nanoseconds| time(Timestamp::new(seconds, nanoseconds).unwrap());
        assert_eq!((at(5, 7).seconds, at(5, 7).nanos), (5, 7));
        assert_eq!((at(-2, -250_000_000).seconds, at(-2, -250_000_000).nanos), (-3, 750_000_000));
    }
}
