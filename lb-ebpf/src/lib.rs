//! What Sluice's XDP programs share: access to a frame's bytes, and the headers in it.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod atomic;
pub mod link;
pub mod packet;
pub mod wire;

/// The verifier proves that no panic can be reached; the linker still wants a handler.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
