#include "runtime/thread_stacks.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>

namespace denoised {
namespace {

constexpr int kSignal = SIGURG;
constexpr int kMostFrames = 48;
constexpr int kOfTheHandler = 2;    // itself, and what the kernel returns to
constexpr size_t kMostSymbol = 80;  // of a mangled name
constexpr std::chrono::milliseconds kAnswer(100), kWritten(2000), kLook(1);

// Between the one that asks and the handler. A handler runs at any point of its thread: it takes no
// lock and no memory.
std::atomic<pid_t> asked{0};  // the thread that is to answer; 0 once it has begun to
std::atomic<int> depth{-1};
std::array<void*, kMostFrames> addresses;

pid_t ThisThread() { return static_cast<pid_t>(syscall(SYS_gettid)); }

void Answer(int) {
  const int before = errno;
  pid_t self = ThisThread();
  if (asked.compare_exchange_strong(self, 0)) {
    depth.store(backtrace(addresses.data(), kMostFrames), std::memory_order_release);
  }
  errno = before;
}

void TakeSignals() {
  std::array<void*, 1> nothing;
  backtrace(nothing.data(), 1);  // its first call takes memory: not in the handler
  struct sigaction action = {};
  action.sa_handler = Answer;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(kSignal, &action, nullptr);
}

bool Await(std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  while (depth.load(std::memory_order_acquire) < 0) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(kLook);
  }
  return true;
}

// The thread's addresses; none where it takes no signals or is gone. Empty where it does not come
// to the end of its answer: then nobody else may be asked.
std::optional<std::vector<void*>> AddressesOf(pid_t thread) {
  depth = -1;
  asked = thread;
  if (syscall(SYS_tgkill, getpid(), thread, kSignal) != 0 || !Await(kAnswer)) {
    pid_t expected = thread;
    if (asked.compare_exchange_strong(expected, 0)) return std::vector<void*>();
    if (!Await(kWritten)) return std::nullopt;
  }
  const int first = std::min(kOfTheHandler, depth.load());
  return std::vector<void*>(addresses.begin() + first, addresses.begin() + depth.load());
}

std::string Hex(uintptr_t number) {
  std::array<char, 24> text;
  std::snprintf(text.data(), text.size(), "0x%jx", static_cast<uintmax_t>(number));
  return text.data();
}

std::string FrameText(void* address) {
  Dl_info found;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (dladdr(address, &found) == 0 || found.dli_fname == nullptr) return Hex(at);
  const std::string library = std::filesystem::path(found.dli_fname).filename();
  std::string text = library + "+" + Hex(at - reinterpret_cast<uintptr_t>(found.dli_fbase));
  if (found.dli_sname != nullptr) text += " " + std::string(found.dli_sname).substr(0, kMostSymbol);
  return text;
}

std::vector<pid_t> Threads() {
  std::vector<pid_t> threads;
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", gone)) {
    threads.push_back(static_cast<pid_t>(std::stol(entry.path().filename())));
  }
  return threads;
}

std::string NameOf(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/comm");
  std::string name;
  std::getline(file, name);
  return name;
}

}  // namespace

std::vector<ThreadStack> StacksOfAllThreads() {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  TakeSignals();
  std::vector<ThreadStack> stacks;
  for (const pid_t thread : Threads()) {
    if (thread == ThisThread()) continue;  // it asks
    const auto found = AddressesOf(thread);
    if (!found) break;
    ThreadStack& stack = stacks.emplace_back(ThreadStack{thread, NameOf(thread), {}});
    for (void* address : *found) stack.frames.push_back(FrameText(address));
  }
  return stacks;
}

}  // namespace denoised
