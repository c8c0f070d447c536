// The GEMM's register tile, once, over a vector type `S` (see tile_impl.h), which here also has
// LoadPanel(panel, unit, column): kLanes columns of one unit of the panel. Each instruction set's
// file includes this inside its own unnamed namespace.

template <int kValue>
struct Constant {
  constexpr operator int() const { return kValue; }
};

// Calls act(i) with i = 0 .. kCount - 1 as constants: an array that is only indexed by constants
// lives in registers all the way, where a loop, unrolled later, would begin and end in memory.
template <int kFirst, int kCount, class Act>
[[gnu::always_inline]] inline void ForEach(const Act& act) {
  if constexpr (kFirst < kCount) {
    act(Constant<kFirst>());
    ForEach<kFirst + 1, kCount>(act);
  }
}

// What becomes of the sums of a row's two vectors: added to what stands in the tile, or stored.
template <class S>
struct KeepSums {
  void operator()(const GemmTile& tile, int row, int column, typename S::F low,
                  typename S::F high) const {
    float* const sums = tile.sums + row * tile.sum_stride + column;
    S::Store(sums, tile.first ? low : S::Add(S::Load(sums), low));
    float* const next = sums + S::kLanes;
    S::Store(next, tile.first ? high : S::Add(S::Load(next), high));
  }
};

// kHeight rows of two vectors; keep(tile, row, column, low, high) gets each row's sums.
//
// Every output element is one chain of MulAdd over the units in order: its bits depend neither on
// the tile's height nor on its place.
template <class S, int kHeight, class Keep>
inline void TileColumns(const GemmTile& tile, int row, int column, const Keep& keep) {
  constexpr int kV = 2;
  typename S::F acc[kHeight * kV];
  ForEach<0, kHeight * kV>([&](auto i) { acc[i] = S::Zero(); });
  int64_t u = 0;
  const int64_t row_stride = tile.row_stride != 0 ? tile.row_stride : tile.height;
  const char* soon = tile.soon != nullptr ? tile.soon : static_cast<const char*>(tile.panel);
  for (int run = 0; run < tile.runs; ++run) {
    const uint32_t* rows = tile.rows + row + run;
    for (const int64_t end = u + tile.units; u < end; ++u, rows += row_stride) {
      __builtin_prefetch(soon, 0, 3);
      soon += tile.soon_step;
      typename S::F panel[kV];
      ForEach<0, kV>(
          [&](auto v) { panel[v] = S::LoadPanel(tile.panel, u, column + v * S::kLanes); });
      ForEach<0, kHeight>([&](auto r) {
        const typename S::F unit = S::BroadcastUnit(rows + r);
        ForEach<0, kV>(
            [&](auto v) { acc[r * kV + v] = S::MulAdd(acc[r * kV + v], panel[v], unit); });
      });
    }
  }
  ForEach<0, kHeight>([&](auto r) { keep(tile, row + r, column, acc[r * kV], acc[r * kV + 1]); });
}

// kMost rows at once fit the registers; a taller tile is taken in parts. The tile is not copied:
// its fields were stored one by one just now, and a wider load of them would wait until all stores
// before them, those of the last tile's results too, are in the cache.
template <class S, int kMost>
inline void RunGemmTile(const GemmTile& tile) {
  constexpr KeepSums<S> keep;
  for (int row = 0; row < tile.height; row += kMost) {
    for (int column = 0; column < kPanelColumns; column += 2 * S::kLanes) {
      if (tile.height - row >= kMost) {
        TileColumns<S, kMost>(tile, row, column, keep);
      } else if (tile.height - row >= 8) {
        if constexpr (kMost > 8) TileColumns<S, 8>(tile, row, column, keep);
      } else if (tile.height - row >= 4) {
        TileColumns<S, 4>(tile, row, column, keep);
      } else {
        TileColumns<S, 2>(tile, row, column, keep);
      }
    }
  }
}
