//! The flow tables as the agent reads them.
