//! What the ECN field of a packet becomes when it leaves a tunnel (RFC 6040 section 4.2).

use lb_common::decap::DecapDrop;

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The inner packet's new ECN field, all in the low two bits.
#[inline(always)]
pub fn leave_tunnel(outer: u8, inner: u8) -> Result<u8, DecapDrop> {
    match (outer, inner) {
        // Whoever does not react to a mark must learn of congestion by a loss.
        (CE, NOT_ECT) => Err(DecapDrop::EcnViolation),
        (CE, _) => Ok(CE),
        (ECT_1, ECT_0) => Ok(ECT_1),
        (_, inner) => Ok(inner),
    }
}
