// The instructions of a warp, on what its 32 threads gave. Fragments as the PTX ISA lays them out;
// g is a lane's number over 4, t what is left.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <backends/cuda/ptx.cuh>
#include <backends/cuda/ptx_hopper.cuh>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/emulated_cuda/block.h"

namespace denoised {
namespace emulated {
namespace {

// What the lanes of a warp gave.
template <class Post>
class Lanes {
 public:
  explicit Lanes(void* const (&posts)[kLanes]) : posts_(posts) {}
  Post& operator[](int lane) const { return *static_cast<Post*>(posts_[lane]); }

 private:
  void* const* posts_;
};

template <class Post, void (*kAct)(const Lanes<Post>&)>
void Meet(Post* post) {
  MeetWarp([](void* const(&posts)[kLanes]) { kAct(Lanes<Post>(posts)); }, post);
}

struct Shuffled {
  uint32_t bits;
  int from;
  uint32_t result = 0;
};

void Shuffle(const Lanes<Shuffled>& lanes) {
  for (int i = 0; i < kLanes; ++i) lanes[i].result = lanes[lanes[i].from].bits;
}

struct Vote {
  bool yes;
  uint32_t result = 0;
};

void Count(const Lanes<Vote>& lanes) {
  uint32_t ballot = 0;
  for (int i = 0; i < kLanes; ++i) ballot |= uint32_t{lanes[i].yes} << i;
  for (int i = 0; i < kLanes; ++i) lanes[i].result = ballot;
}

struct Addend {
  int x, result = 0;
};

void AddAll(const Lanes<Addend>& lanes) {
  int sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i].x;
  for (int i = 0; i < kLanes; ++i) lanes[i].result = sum;
}

struct Matrices {
  uint32_t address;
  uint32_t* r;
};

// Rows of eight 16-bit elements: [matrix][row][element].
struct Loaded {
  uint16_t x[4][8][8];

  explicit Loaded(const Lanes<Matrices>& lanes) {
    for (int i = 0; i < kLanes; ++i) {
      std::memcpy(x[i / 8][i % 8], SharedPointer(lanes[i].address, 16), 16);
    }
  }
};

uint32_t Pair(uint16_t low, uint16_t high) { return low | uint32_t{high} << 16; }

void LoadRows(const Lanes<Matrices>& lanes) {
  const Loaded loaded(lanes);
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    for (int m = 0; m < 4; ++m) {
      lanes[i].r[m] = Pair(loaded.x[m][g][2 * t], loaded.x[m][g][2 * t + 1]);
    }
  }
}

void LoadColumns(const Lanes<Matrices>& lanes) {
  const Loaded loaded(lanes);
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    for (int m = 0; m < 4; ++m) {
      lanes[i].r[m] = Pair(loaded.x[m][2 * t][g], loaded.x[m][2 * t + 1][g]);
    }
  }
}

float OfBFloat16(uint16_t bits) { return __bfloat162float({bits}); }
float OfFloat16(uint16_t bits) { return __half2float({bits}); }

template <float (*kWiden)(uint16_t)>
void WidenPair(uint32_t pair, float* two) {
  two[0] = kWiden(static_cast<uint16_t>(pair));
  two[1] = kWiden(static_cast<uint16_t>(pair >> 16));
}

void Bytes(uint32_t four, int32_t* x) {
  for (int i = 0; i < 4; ++i) x[i] = static_cast<int8_t>(four >> (8 * i));
}

// The left operand: registers 0 and 2 are of row g, 1 and 3 of row g + 8; 2 and 3 are the second
// half of the row.
template <float (*kWiden)(uint16_t)>
void LeftOperand(int lane, const uint32_t* a, float (&left)[16][16]) {
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) WidenPair<kWiden>(a[i], left[g + i % 2 * 8] + i / 2 * 8 + 2 * t);
}

template <class T>
struct Product {
  T* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <float (*kWiden)(uint16_t)>
void Multiply(const Lanes<Product<float>>& lanes) {
  float left[16][16], right[16][8];
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    LeftOperand<kWiden>(i, lanes[i].a, left);
    for (int half = 0; half < 2; ++half) {
      float two[2];
      WidenPair<kWiden>(lanes[i].b[half], two);
      for (int k = 0; k < 2; ++k) right[half * 8 + 2 * t + k][g] = two[k];
    }
  }
  float sums[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column)
        sums[row][column] += left[row][k] * right[k][column];
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 4; ++j) lanes[i].c[j] += sums[i / 4 + j / 2 * 8][i % 4 * 2 + j % 2];
  }
}

void MultiplyBytes(const Lanes<Product<int32_t>>& lanes) {
  int32_t left[16][32], right[8][32];
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) Bytes(lanes[i].a[r], left[g + r % 2 * 8] + r / 2 * 16 + 4 * t);
    for (int half = 0; half < 2; ++half) Bytes(lanes[i].b[half], right[g] + half * 16 + 4 * t);
  }
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int32_t *a = left[i / 4 + j / 2 * 8], *b = right[i % 4 * 2 + j % 2];
      for (int k = 0; k < 32; ++k) lanes[i].c[j] += a[k] * b[k];
    }
  }
}

// One wgmma: what it was begun with.
struct Wide {
  float (*d)[4];
  const uint32_t* a;
  uint64_t b;
  bool transposed, accumulate;
};

// A descriptor of a 128-byte swizzle: where element (k, column) of 16 by 64 lies.
uint32_t AddressIn(const Wide& wide, int k, int column) {
  const uint32_t start = static_cast<uint32_t>(wide.b & 0x3fff) * 16;
  const uint32_t stride = static_cast<uint32_t>(wide.b >> 32 & 0x3fff) * 16;
  const uint32_t row = static_cast<uint32_t>(wide.transposed ? k : column);
  const uint32_t element = static_cast<uint32_t>(wide.transposed ? column : k);
  const uint32_t address = start + row / 8 * stride + row % 8 * 128 + element * 2;
  return address ^ (address >> 7 & 7) << 4;
}

template <float (*kWiden)(uint16_t)>
void MultiplyWide(const Wide (&lanes)[kLanes]) {
  float left[16][16], right[16][64];
  for (int i = 0; i < kLanes; ++i) LeftOperand<kWiden>(i, lanes[i].a, left);
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < 64; ++column) {
      uint16_t bits;
      std::memcpy(&bits, SharedPointer(AddressIn(lanes[0], k, column), 2), 2);
      right[k][column] = kWiden(bits);
    }
  }
  float sums[16][64] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 64; ++column) {
        sums[row][column] += left[row][k] * right[k][column];
      }
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 32; ++j) {
      float& d = lanes[i].d[j / 4][j % 4];
      const float sum = sums[i / 4 + j % 4 / 2 * 8][j / 4 * 8 + i % 4 * 2 + j % 2];
      d = lanes[i].accumulate ? d + sum : sum;
    }
  }
}

template <float (*kWiden)(uint16_t)>
void BeginWide(const Lanes<Wide>& lanes) {
  if (lanes[0].b >> 62 != 1) Fail("a descriptor without the 128-byte swizzle");
  struct All {
    Wide lanes[kLanes];
  } all;
  for (int i = 0; i < kLanes; ++i) {
    if (lanes[i].b != lanes[0].b) Fail("the threads of a warp describe two operands");
    all.lanes[i] = lanes[i];
  }
  BeginAsync(Async::kProducts, [all] { MultiplyWide<kWiden>(all.lanes); });
}

void BeginCopy(uint32_t target, const void* source, size_t bytes, bool valid) {
  void* to = SharedPointer(target, bytes);
  if (reinterpret_cast<uintptr_t>(source) % bytes != 0) Fail("a copy is not aligned");
  BeginAsync(Async::kCopies,
             [=] { valid ? std::memcpy(to, source, bytes) : std::memset(to, 0, bytes); });
}

struct Pending {
  int groups;
};

void CommitWide(const Lanes<Pending>&) { CommitAsync(Async::kProducts); }
void WaitWide(const Lanes<Pending>& lanes) { WaitAsync(Async::kProducts, lanes[0].groups); }

}  // namespace

void CheckMask(unsigned mask) {
  if (mask != kWholeWarp) Fail("a part of a warp meets, which is not emulated");
}

void ShuffleBits(uint32_t* bits, int from) {
  Shuffled post{*bits, from};
  Meet<Shuffled, Shuffle>(&post);
  *bits = post.result;
}

uint32_t Ballot(bool vote) {
  Vote post{vote};
  Meet<Vote, Count>(&post);
  return post.result;
}

int ReduceAdd(int x) {
  Addend post{x};
  Meet<Addend, AddAll>(&post);
  return post.result;
}

}  // namespace emulated

namespace cuda {

void CopyAsync(uint32_t target, const void* source, bool valid) {
  emulated::BeginCopy(target, source, 16, valid);
}
void CopyFloatAsync(uint32_t target, const float* source, bool valid) {
  emulated::BeginCopy(target, source, 4, valid);
}

void CommitCopies() { emulated::CommitAsync(emulated::Async::kCopies); }
void WaitForCopies(int pending) { emulated::WaitAsync(emulated::Async::kCopies, pending); }

void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  emulated::Matrices post{address, r};
  emulated::Meet<emulated::Matrices, emulated::LoadRows>(&post);
}

void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  emulated::Matrices post{address, r};
  emulated::Meet<emulated::Matrices, emulated::LoadColumns>(&post);
}

// Denormal numbers count as zeros.
float Exp2(float x) {
  const float y = std::exp2(x);
  return y < std::numeric_limits<float>::min() ? 0.0f : y;
}

void MultiplyAddBFloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::Product<float> post{c, a, {b0, b1}};
  emulated::Meet<emulated::Product<float>, emulated::Multiply<emulated::OfBFloat16>>(&post);
}

void MultiplyAddFloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::Product<float> post{c, a, {b0, b1}};
  emulated::Meet<emulated::Product<float>, emulated::Multiply<emulated::OfFloat16>>(&post);
}

void MultiplyAddInt8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::Product<int32_t> post{c, a, {b0, b1}};
  emulated::Meet<emulated::Product<int32_t>, emulated::MultiplyBytes>(&post);
}

void BeginBFloat16Product(float (*d)[4], const uint32_t (&a)[4], uint64_t b, bool transposed,
                          bool accumulate) {
  emulated::Wide post{d, a, b, transposed, accumulate};
  emulated::Meet<emulated::Wide, emulated::BeginWide<emulated::OfBFloat16>>(&post);
}

void BeginFloat16Product(float (*d)[4], const uint32_t (&a)[4], uint64_t b, bool transposed,
                         bool accumulate) {
  emulated::Wide post{d, a, b, transposed, accumulate};
  emulated::Meet<emulated::Wide, emulated::BeginWide<emulated::OfFloat16>>(&post);
}

void BeginProducts() {}

void EndProducts() {
  emulated::Pending post{0};
  emulated::Meet<emulated::Pending, emulated::CommitWide>(&post);
}

void WaitForProducts(int pending) {
  emulated::Pending post{pending};
  emulated::Meet<emulated::Pending, emulated::WaitWide>(&post);
}

}  // namespace cuda
}  // namespace denoised

void __syncthreads() { denoised::emulated::MeetBlock(false); }
bool __syncthreads_or(bool any) { return denoised::emulated::MeetBlock(any); }

uint32_t __cvta_generic_to_shared(const void* pointer) {
  return denoised::emulated::SharedAddress(pointer);
}
void* __cvta_shared_to_generic(uint32_t address) {
  return denoised::emulated::SharedPointer(address, 1);
}
