//! Network namespaces that remove themselves.
