//! Trainers from outside: what they learn, what each objective is good for, that both engines agree, and that saved states go on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Settings with some of them changed.
macro_rules! with {
    (@set $config:ident $field:ident) => {
        $config.$field = $field;
    };
    (@set $config:ident $field:ident $value:expr) => {
        $config.$field = $value;
    };
    ($base:expr; $($field:ident $(: $value:expr)?),* $(,)?) => {{
        let mut config = $base;
        $(with!(@set config $field $($value)?);)*
        config
    }};
}

mod distributed;
mod engines;
mod objectives;
mod scaling;
mod state;
mod toy;
mod traffic;
mod training;
