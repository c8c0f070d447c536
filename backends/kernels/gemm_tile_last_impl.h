// The last piece of a tile, once over the vector types of gemm_tile_impl.h (S) and of
// gemm_finish_impl.h (V), after both of which each instruction set's file includes this inside its
// own unnamed namespace.

// A row's sums become results before they leave the registers.
template <class S, class V, FinishTo kTo>
struct KeepResults {
  const GemmFinish& finish;
  void operator()(const GemmTile& /*tile*/, int row, int column, typename S::F low,
                  typename S::F high) const {
    const float* const gate = finish.gates != nullptr ? finish.gates[row] : nullptr;
    FinishTwo<V, Activation::kNone, kTo>(
        low, high, finish.bias, gate, FirstOf<kTo>(finish) + row * RowBytes<kTo>(finish), column);
  }
};

// Where there is but one piece of K, of which this is a larger part. Activations need the registers
// for themselves; a tile that is not whole is rare.
template <class S, class V, int kMost>
inline void RunLastGemmTile(const GemmTile& tile, const GemmFinish& finish) {
  if (!tile.first || finish.activation != Activation::kNone || finish.rows < kTileRows ||
      finish.columns < kPanelColumns) {
    RunGemmTile<S, kMost>(tile);
    return RunFinish<V>(finish);
  }
  Finishing(finish, [&](auto to) {
    const KeepResults<S, V, to()> keep{finish};
    for (int row = 0; row < kTileRows; row += kMost) {
      for (int column = 0; column < kPanelColumns; column += 2 * S::kLanes) {
        TileColumns<S, kMost>(tile, row, column, keep);
      }
    }
  });
}
