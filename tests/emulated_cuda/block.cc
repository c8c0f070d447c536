#include "tests/emulated_cuda/block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "backends/intra_op.h"

// Saves the callee's registers on the stack of now, whose pointer goes to *from, and goes on with
// what was saved on the stack `to`.
extern "C" void DenoisedSwitchStack(void** from, void* to);
asm(R"(
.text
.type DenoisedSwitchStack, @function
DenoisedSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size DenoisedSwitchStack, .-DenoisedSwitchStack
)");

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace denoised::emulated {
namespace {

// Not a power of two: the same variable of 32 lanes would be in eight places of the cache.
constexpr size_t kStackBytes = (64 << 10) + 5 * 64;
static_assert(kStackBytes % 16 == 0);
constexpr uint64_t kStackEnd = 0x5afe57ac5afe57ac;  // in its lowest bytes
constexpr size_t kMostShared = 227 << 10;           // of a thread block, compute capability 9.0
constexpr size_t kSharedAlignment = 1024;

// Work that was begun, by groups; the last one is still open.
class AsyncQueue {
 public:
  void Begin(std::function<void()> work, bool at_once) {
    if (at_once) return work();
    groups_.back().push_back(std::move(work));
  }
  void Commit() { groups_.emplace_back(); }
  void Wait(int pending) {
    while (groups_.size() > static_cast<size_t>(pending) + 1) {
      for (const auto& work : groups_.front()) work();
      groups_.pop_front();
    }
  }
  void Clear() { groups_ = std::deque<std::vector<std::function<void()>>>(1); }

 private:
  std::deque<std::vector<std::function<void()>>> groups_{1};
};

struct Fiber {
  enum class State { kReady, kAtWarp, kAtBlock, kDone };

  Fiber() : stack(std::make_unique_for_overwrite<unsigned char[]>(kStackBytes)) {}

  std::unique_ptr<unsigned char[]> stack;
  void* saved = nullptr;
  State state = State::kReady;
  uint3 index{};
  int warp = 0, lane = 0;
  AsyncQueue copies;
};

struct Warp {
  Together act = nullptr;
  void* posts[kLanes];
  int arrived = 0;
  AsyncQueue products;
};

class Block {
 public:
  static Block& OfThisThread() {
    thread_local Block block;
    return block;
  }

  void Run(dim3 threads, size_t shared_bytes, int64_t number, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    backwards_ = number % 2 == 1;
    copies_at_once_ = number / 2 % 2 == 1;
    products_at_once_ = number / 4 % 2 == 1;
    PlaceShared(shared_bytes, number);
    MakeFibers(threads);
    while (done_ < count_) RunEachReady();
    for (int i = 0; i < count_; ++i) {
      if (StackEnd(fibers_[i]) != kStackEnd) Fail("a thread of the block has overrun its stack");
    }
    current_ = nullptr;
  }

  void MeetWarp(Together act, void* post) {
    Fiber& self = *current_;
    Warp& warp = warps_[self.warp];
    if (warp.arrived > 0 && warp.act != act)
      Fail("the threads of a warp meet at two kinds of instructions");
    warp.act = act;
    warp.posts[self.lane] = post;
    if (++warp.arrived < kLanes) return Pause(Fiber::State::kAtWarp);
    warp.arrived = 0;
    act(warp.posts);
    Fiber* first = &fibers_[self.warp * kLanes];
    for (Fiber* fiber = first; fiber < first + kLanes; ++fiber) fiber->state = Fiber::State::kReady;
  }

  bool MeetBlock(bool any) {
    any_ = any_ || any;
    ++at_barrier_;
    Pause(Fiber::State::kAtBlock);
    return passed_any_;
  }

  unsigned char* shared() { return shared_; }

  uint32_t SharedAddress(const void* pointer) {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - memory_);
  }

  void* SharedPointer(uint32_t address, size_t bytes) {
    unsigned char* pointer = memory_ + address;
    if (pointer < shared_ || pointer + bytes > shared_ + shared_bytes_) {
      Fail("address " + std::to_string(address) + " is outside of shared memory");
    }
    if (address % bytes != 0) Fail("address " + std::to_string(address) + " is not aligned");
    return pointer;
  }

  AsyncQueue& Queue(Async kind) {
    return kind == Async::kCopies ? current_->copies : warps_[current_->warp].products;
  }
  bool at_once(Async kind) const {
    return kind == Async::kCopies ? copies_at_once_ : products_at_once_;
  }

 private:
  void PlaceShared(size_t bytes, int64_t number) {
    if (room_.size() < bytes + 2 * kSharedAlignment) room_.resize(bytes + 2 * kSharedAlignment);
    const uintptr_t start = reinterpret_cast<uintptr_t>(room_.data());
    memory_ = room_.data() + (kSharedAlignment - start % kSharedAlignment) % kSharedAlignment;
    shared_ = memory_ + number % 7 * 128;
    shared_bytes_ = bytes;
    std::memset(shared_, 0xff, bytes);
  }

  void MakeFibers(dim3 threads) {
    count_ = static_cast<int>(threads.x * threads.y * threads.z);
    const int warps = (count_ + kLanes - 1) / kLanes;
    if (fibers_.size() < static_cast<size_t>(warps) * kLanes) fibers_.resize(warps * kLanes);
    if (warps_.size() < static_cast<size_t>(warps)) warps_.resize(warps);
    for (int i = 0; i < warps; ++i) {
      warps_[i].arrived = 0;
      warps_[i].products.Clear();
    }
    for (int i = 0; i < count_; ++i) Begin(i, threads);
    for (int i = count_; i < warps * kLanes; ++i) fibers_[i].state = Fiber::State::kDone;
    done_ = at_barrier_ = 0;
    any_ = false;
  }

  void Begin(int number, dim3 threads) {
    Fiber& fiber = fibers_[number];
    const unsigned n = static_cast<unsigned>(number);
    fiber.index = {n % threads.x, n / threads.x % threads.y, n / (threads.x * threads.y)};
    fiber.warp = number / kLanes;
    fiber.lane = number % kLanes;
    fiber.state = Fiber::State::kReady;
    fiber.copies.Clear();
    // Six registers, and where to return to; a function begins with 8 bytes on a multiple of 16.
    void** top = reinterpret_cast<void**>(fiber.stack.get() + kStackBytes) - 1;
    *top = nullptr;  // where whoever unwinds the stack ends
    *--top = reinterpret_cast<void*>(&Block::Main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.saved = top;
    StackEnd(fiber) = kStackEnd;
  }

  static uint64_t& StackEnd(Fiber& fiber) {
    return *reinterpret_cast<uint64_t*>(fiber.stack.get());
  }

  static void Main() {
    Block& block = OfThisThread();
    (*block.kernel_)();
    block.EndOfThread();
  }

  void EndOfThread() {
    ++done_;
    Pause(Fiber::State::kDone);
    std::abort();
  }

  void Pause(Fiber::State state) {
    Fiber& self = *current_;
    self.state = state;
    // A warp goes on for as long as it can.
    Fiber& next =
        fibers_[self.warp * kLanes + (self.lane + (backwards_ ? kLanes - 1 : 1)) % kLanes];
    if (state == Fiber::State::kAtWarp && next.state == Fiber::State::kReady) {
      Enter(&next);
      DenoisedSwitchStack(&self.saved, next.saved);
    } else {
      DenoisedSwitchStack(&self.saved, scheduler_);
    }
  }

  void Enter(Fiber* fiber) {
    current_ = fiber;
    threadIdx = fiber->index;
  }

  void RunEachReady() {
    bool ran = false;
    for (int i = 0; i < count_; ++i) {
      Fiber& fiber = fibers_[backwards_ ? count_ - 1 - i : i];
      if (fiber.state != Fiber::State::kReady) continue;
      ran = true;
      Enter(&fiber);
      DenoisedSwitchStack(&scheduler_, fiber.saved);
    }
    if (ran) return;
    if (at_barrier_ == 0 || at_barrier_ + done_ < count_) Fail("threads wait for each other");
    passed_any_ = any_;
    any_ = false;
    at_barrier_ = 0;
    for (int i = 0; i < count_; ++i) {
      if (fibers_[i].state == Fiber::State::kAtBlock) fibers_[i].state = Fiber::State::kReady;
    }
  }

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  int count_ = 0, done_ = 0, at_barrier_ = 0;
  bool any_ = false, passed_any_ = false;
  bool backwards_ = false, copies_at_once_ = false, products_at_once_ = false;
  Fiber* current_ = nullptr;
  void* scheduler_ = nullptr;
  std::vector<unsigned char> room_;
  unsigned char *memory_ = nullptr, *shared_ = nullptr;  // where addresses begin; the block's own
  size_t shared_bytes_ = 0;
};

bool Fits(dim3 grid, dim3 threads, size_t shared_bytes) {
  const uint64_t block = uint64_t{threads.x} * threads.y * threads.z;
  return grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
         grid.z <= 65535 && block > 0 && block <= 1024 && threads.z <= 64 &&
         shared_bytes <= kMostShared;
}

}  // namespace

void Fail(const std::string& what) {
  std::fprintf(stderr, "emulated CUDA: %s; block %u %u %u, thread %u %u %u\n", what.c_str(),
               blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::abort();
}

cudaError_t RunGrid(dim3 grid, dim3 threads, size_t shared_bytes,
                    const std::function<void()>& kernel) {
  if (!Fits(grid, threads, shared_bytes)) return cudaErrorInvalidConfiguration;
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
    gridDim = grid;
    blockDim = threads;
    for (int64_t i = begin; i < end; ++i) {
      blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                  static_cast<unsigned>(i / grid.x / grid.y)};
      Block::OfThisThread().Run(threads, shared_bytes, i, kernel);
    }
  });
  return cudaSuccess;
}

void MeetWarp(Together act, void* post) { Block::OfThisThread().MeetWarp(act, post); }
bool MeetBlock(bool any) { return Block::OfThisThread().MeetBlock(any); }
unsigned char* DynamicShared() { return Block::OfThisThread().shared(); }
uint32_t SharedAddress(const void* pointer) { return Block::OfThisThread().SharedAddress(pointer); }
void* SharedPointer(uint32_t address, size_t bytes) {
  return Block::OfThisThread().SharedPointer(address, bytes);
}

void BeginAsync(Async kind, std::function<void()> work) {
  Block& block = Block::OfThisThread();
  block.Queue(kind).Begin(std::move(work), block.at_once(kind));
}
void CommitAsync(Async kind) { Block::OfThisThread().Queue(kind).Commit(); }
void WaitAsync(Async kind, int pending) { Block::OfThisThread().Queue(kind).Wait(pending); }

}  // namespace denoised::emulated
