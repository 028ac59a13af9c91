//! What can be wrong with a backend.

/// A mistake that somebody has made, or will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Products leave out the last weight of rows whose length is not a multiple of four.
    TailOffByOne,
    /// The two nibbles of a `tl1` byte are taken in the wrong order.
    NibblesSwapped,
    /// `i2_s` is written in the 64-value blocks of ARM builds.
    I2sBlock64,
    /// The rest of the tail behind the scale is not zeroed.
    GarbageInTail,
    /// Sums are kept in int16 with saturation, as a `maddubs` kernel does that forgot to widen.
    SaturatingAdd,
    /// Products are not multiplied by the weight's scale.
    IgnoredScale,
    /// Every block of a row gets the scale of the first.
    FirstBlockScale,
    /// Blocks are added from the first to the last, not in lanes.
    BlocksInSequence,
    /// A weight whose scales differ only in blocks of zeros is summed block by block.
    ZeroBlocksCount,
    /// Rows of zero activations are skipped, and their results left as they were.
    StaleOutput,
    /// A result is taken from a cache that knows shapes and not data.
    CachedByShape,
    /// `Epilogue::Add` stores.
    AddStores,
    /// `supports` says yes to sampling, which then is not done.
    LyingYes,
    /// `supports` says no to gathering rows, which then is done all the same.
    LyingNo,
    /// `supports` says yes to products that cannot be.
    ImpossibleYes,
    /// Another kernel ran than was promised.
    WrongKernelName,
    /// What another backend packed is multiplied as if it were zero.
    AcceptsForeignPack,
    /// Less is announced than a packed weight occupies.
    PackedSizeTooSmall,
    /// New memory holds what was there before.
    DirtyMemory,
    /// Activations round half away from zero.
    ActivationsRoundAway,
    /// The largest magnitude of a row is looked for in all elements but the last.
    AbsmaxWithoutLast,
    /// A NaN among activations becomes 0.
    NanBecomesZero,
    /// Weights at exactly half the scale round away from zero.
    WeightTiesAway,
    /// The mean of a tensor is summed in lanes all the way, without chunks.
    MeanWithoutChunks,
    /// The index of a NaN among weights is that within its row.
    NanIndexInRow,
    /// The squares of RMSNorm are added with fused multiply-adds.
    ContractedFma,
    /// So are the products of dense weights.
    ContractedDot,
    /// RMSNorm sums in 32 lanes.
    HalfTheLanes,
    /// Sums run from the first element to the last.
    SequentialSum,
    /// Numbers below the smallest normal one become zero.
    FlushesDenormals,
    /// A row does not attend to its own position.
    AttentionOffByOne,
    /// The values are summed over all positions at once, and not in chunks of 64.
    AttentionWithoutChunks,
    /// Rows see the cache from its first row on, and with it the sequences before their own.
    SpansIgnored,
    /// Query heads are dealt to key/value heads in turn, instead of in groups.
    HeadsInterleaved,
    /// Rotation turns neighbours, instead of elements half a head apart.
    RopeInterleaved,
    /// The last of equal logits wins.
    LastOfEquals,
    /// One op panics.
    Panics,
}
