//! What the agent asks of and tells to the kernel by netlink: links, routes, neighbours, VIP addresses.
