//! Bytes to model and back: pprof, its legacy text forms, folded stacks, speedscope.
