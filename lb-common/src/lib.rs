//! What the XDP program and the agent share.
#![cfg_attr(not(feature = "user"), no_std)]
