//! No positions. The counterpart of `models::positions::none`.

use super::Scheme;

pub(super) struct NoPositions;

impl Scheme for NoPositions {}
