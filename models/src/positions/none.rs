//! No positional embedding: the causal mask alone breaks the symmetry (NoPE, Kazemnejad et al., arXiv 2305.19466).

use super::{Input, Scheme};
use crate::Init;
use crate::transformer::TransformerConfig;
use burn::module::Module;
use burn::prelude::*;
use std::marker::PhantomData;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct NoPositions<B: Backend> {
    backend: PhantomData<B>,
}

impl<B: Backend> Scheme<B> for NoPositions<B> {
    const INPUT: Input = Input::None;

    fn new(_config: &TransformerConfig, _init: &mut Init<'_, B>) -> Self {
        Self { backend: PhantomData }
    }
}
