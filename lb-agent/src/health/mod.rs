//! Health checks: probes and the state machine that judges them.
