// The tile registers of AMX (see vector_amx.h). Included inside the unnamed namespace of the files
// that use it.
// Layout that LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The intrinsics want literals for register numbers.
struct ProcessorTiles {
  static void Start() {
    const TileConfig config;
    _tile_loadconfig(&config);
  }
  static void End() { _tile_release(); }

  template <int kTile>
  static void Zero() {
    static_assert(kTile < 4);
    if constexpr (kTile == 0) _tile_zero(0);
    if constexpr (kTile == 1) _tile_zero(1);
    if constexpr (kTile == 2) _tile_zero(2);
    if constexpr (kTile == 3) _tile_zero(3);
  }

  template <int kTile>
  static void Load(const void* data, int64_t stride) {
    static_assert(kTile < 8);
    if constexpr (kTile == 0) _tile_loadd(0, data, stride);
    if constexpr (kTile == 1) _tile_loadd(1, data, stride);
    if constexpr (kTile == 2) _tile_loadd(2, data, stride);
    if constexpr (kTile == 3) _tile_loadd(3, data, stride);
    if constexpr (kTile == 4) _tile_loadd(4, data, stride);
    if constexpr (kTile == 5) _tile_loadd(5, data, stride);
    if constexpr (kTile == 6) _tile_loadd(6, data, stride);
    if constexpr (kTile == 7) _tile_loadd(7, data, stride);
  }

  template <int kTile>
  static void Store(void* data, int64_t stride) {
    static_assert(kTile < 4);
    if constexpr (kTile == 0) _tile_stored(0, data, stride);
    if constexpr (kTile == 1) _tile_stored(1, data, stride);
    if constexpr (kTile == 2) _tile_stored(2, data, stride);
    if constexpr (kTile == 3) _tile_stored(3, data, stride);
  }

  template <int kResult, int kRows, int kColumns>
  static void Dot() {
    static_assert(kRows == 4 + kResult % 2 && kColumns == 6 + kResult / 2);
    if constexpr (kResult == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kResult == 1) _tile_dpbf16ps(1, 5, 6);
    if constexpr (kResult == 2) _tile_dpbf16ps(2, 4, 7);
    if constexpr (kResult == 3) _tile_dpbf16ps(3, 5, 7);
  }

  template <int kResult, int kRows, int kColumns>
  static void DotBytes() {
    static_assert(kRows == 4 + kResult % 2 && kColumns == 6 + kResult / 2);
    if constexpr (kResult == 0) _tile_dpbusd(0, 4, 6);
    if constexpr (kResult == 1) _tile_dpbusd(1, 5, 6);
    if constexpr (kResult == 2) _tile_dpbusd(2, 4, 7);
    if constexpr (kResult == 3) _tile_dpbusd(3, 5, 7);
  }
};
