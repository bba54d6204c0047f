//! One target's life from attach to verdict.
