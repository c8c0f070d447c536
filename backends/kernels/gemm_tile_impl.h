// The GEMM's register tile, once, over a vector type `S` (see tile_impl.h), which here also has
// LoadPanel(panel, unit, column): kLanes columns of one unit of the panel. Each instruction set's
// file includes this inside its own unnamed namespace.

// Every output element is one chain of MulAdd over the units in order: its bits depend neither on
// the tile's height nor on its place.
template <class S, int kHeight, int kV>
inline void TileColumns(const GemmTile& tile, int row, int column) {
  typename S::F acc[kHeight][kV];
  for (auto& sums : acc) {
    for (auto& x : sums) x = S::Zero();
  }
  int64_t u = 0;
  const int64_t row_stride = tile.row_stride != 0 ? tile.row_stride : tile.height;
  const char* soon = tile.soon != nullptr ? tile.soon : static_cast<const char*>(tile.panel);
  for (int run = 0; run < tile.runs; ++run) {
    const uint32_t* rows = tile.rows + row + run;
    for (const int64_t end = u + tile.units; u < end; ++u, rows += row_stride) {
      __builtin_prefetch(soon, 0, 3);
      soon += tile.soon_step;
      typename S::F panel[kV];
      for (int v = 0; v < kV; ++v) panel[v] = S::LoadPanel(tile.panel, u, column + v * S::kLanes);
      for (int r = 0; r < kHeight; ++r) {
        const typename S::F unit = S::BroadcastUnit(rows + r);
        for (int v = 0; v < kV; ++v) acc[r][v] = S::MulAdd(acc[r][v], panel[v], unit);
      }
    }
  }
  for (int r = 0; r < kHeight; ++r) {
    float* sums = tile.sums + (row + r) * tile.sum_stride + column;
    for (int v = 0; v < kV; ++v, sums += S::kLanes) {
      S::Store(sums, tile.first ? acc[r][v] : S::Add(S::Load(sums), acc[r][v]));
    }
  }
}

// kMost rows at once fit the registers; a taller tile is taken in parts. The tile is not copied:
// its fields were stored one by one just now, and a wider load of them would wait until all stores
// before them, those of the last tile's results too, are in the cache.
template <class S, int kMost>
inline void RunGemmTile(const GemmTile& tile) {
  constexpr int kV = 2;
  for (int row = 0; row < tile.height; row += kMost) {
    for (int column = 0; column < kPanelColumns; column += kV * S::kLanes) {
      if (tile.height - row >= kMost) {
        TileColumns<S, kMost, kV>(tile, row, column);
      } else if (tile.height - row >= 8) {
        if constexpr (kMost > 8) TileColumns<S, 8, kV>(tile, row, column);
      } else if (tile.height - row >= 4) {
        TileColumns<S, 4, kV>(tile, row, column);
      } else {
        TileColumns<S, 2, kV>(tile, row, column);
      }
    }
  }
}
