//! WebSocket chat servers and clients whose every byte is checked.
