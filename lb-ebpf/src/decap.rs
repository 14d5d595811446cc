#![no_std]
#![no_main]
use lb_ebpf as _;
