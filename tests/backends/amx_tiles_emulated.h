// The tile registers of AMX (backends/kernels/vector_amx.h) in memory, and their instructions in
// plain code. Included inside the unnamed namespace of the files that use it.
struct EmulatedTiles {
  // As the processor's: a register that was never loaded since Start holds zeros.
  static void Start() { std::memset(tiles, 0, sizeof(tiles)); }
  static void End() {}

  template <int kTile>
  static void Zero() {
    std::memset(tiles[kTile], 0, sizeof(tiles[kTile]));
  }

  template <int kTile>
  static void Load(const void* data, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(tiles[kTile][row], static_cast<const char*>(data) + row * stride, 64);
    }
  }

  template <int kTile>
  static void Store(void* data, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(static_cast<char*>(data) + row * stride, tiles[kTile][row], 64);
    }
  }

  // TDPBF16PS: pairs along a's row against pairs down b's column.
  template <int kResult, int kRows, int kColumns>
  static void Dot() {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 16; ++column) {
        float sum;
        std::memcpy(&sum, &tiles[kResult][row][column], 4);
        for (int k = 0; k < 16; ++k) {
          const uint32_t a = tiles[kRows][row][k], b = tiles[kColumns][k][column];
          sum += Half(a) * Half(b) + Half(a >> 16) * Half(b >> 16);
        }
        std::memcpy(&tiles[kResult][row][column], &sum, 4);
      }
    }
  }

  // TDPBUSD: unsigned bytes along a's row against signed ones down b's column.
  template <int kResult, int kRows, int kColumns>
  static void DotBytes() {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 16; ++column) {
        uint32_t& sum = tiles[kResult][row][column];
        for (int byte = 0; byte < 64; ++byte) {
          const int shift = byte % 4 * 8;
          const int a = static_cast<uint8_t>(tiles[kRows][row][byte / 4] >> shift);
          const int b = static_cast<int8_t>(tiles[kColumns][byte / 4][column] >> shift);
          sum += static_cast<uint32_t>(a * b);
        }
      }
    }
  }

 private:
  static float Half(uint32_t bits) {
    bits <<= 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  static inline thread_local uint32_t tiles[8][16][16];
};
