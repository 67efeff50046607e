//! The lists behind enums, dispatch and tests: a new architecture or positional scheme is one more line here.
//! Programs without the models, such as an evaluator that only names them, read this file alone.

/// Hands the architectures to the macro called `$callback`, each as `Variant module Config "Title";`.
///
/// The module's name is the value of `arch` in configs; the model's type is called as the variant. See
/// [`Architecture`](crate::Architecture) for what the config implements.
#[macro_export]
macro_rules! architectures {
    ($callback:ident) => {
        $callback! {
            Rnn rnn RnnConfig "RNN";
            Lstm lstm LstmConfig "LSTM";
            Gru gru GruConfig "GRU";
            Mingru mingru MinGruConfig "minGRU";
            Minlstm minlstm MinLstmConfig "minLSTM";
            S4 s4 S4Config "S4";
            Mamba mamba MambaConfig "Mamba";
            Mamba2 mamba2 Mamba2Config "Mamba-2";
            Rwkv5 rwkv5 Rwkv5Config "RWKV-5";
            Rwkv6 rwkv6 Rwkv6Config "RWKV-6";
            Rwkv7 rwkv7 Rwkv7Config "RWKV-7";
            Deltanet deltanet DeltaNetConfig "Gated DeltaNet";
            GatedDeltanet gated_deltanet GatedDeltanetConfig "Gated DeltaNet (fla)";
            Gla gla GlaConfig "GLA";
            Hgrn2 hgrn2 Hgrn2Config "HGRN2";
            Xlstm xlstm XlstmConfig "xLSTM";
            Hybrid hybrid HybridConfig "hybrid";
            Transformer transformer TransformerConfig "Transformer";
        }
    };
}

/// Hands the positional schemes of Transformers to the macro called `$callback`, each as
/// `Variant module Type "Title";`.
///
/// The module's name is the value of `positional_embedding` in configs. See [`Scheme`](crate::positions::Scheme) for
/// what the type implements.
#[macro_export]
macro_rules! positions {
    ($callback:ident) => {
        $callback! {
            None none NoPositions "NoPE";
            Absolute absolute Absolute "absolute";
            Sinusoidal sinusoidal Sinusoidal "sinusoidal";
            Rope rope Rope "RoPE";
            Scalar scalar Scalar "scalar";
            Alibi alibi Alibi "ALiBi";
            T5 t5 T5 "T5 bias";
            KerpleLog kerple_log KerpleLog "KERPLE";
            Fire fire Fire "FIRE";
            Cope cope Cope "CoPE";
            Ssmax ssmax Ssmax "SSMax";
            Logn logn Logn "log n";
            LognClip logn_clip LognClip "log n, clipped";
        }
    };
}
