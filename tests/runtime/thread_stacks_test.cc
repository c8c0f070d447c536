// Stacks of threads that wait, work, end and take no signals.
#include "runtime/thread_stacks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <thread>

namespace denoised {
namespace {

// A thread that says who it is, and stays until it may go.
class Sleeper {
 public:
  explicit Sleeper(bool takes_signals) {
    thread_ = std::thread([this, takes_signals] {
      sigset_t all;
      sigfillset(&all);
      if (!takes_signals) pthread_sigmask(SIG_BLOCK, &all, nullptr);
      pthread_setname_np(pthread_self(), "sleeper");
      who_.set_value(static_cast<pid_t>(syscall(SYS_gettid)));
      go_.get_future().wait();
    });
    thread = who_.get_future().get();
  }
  ~Sleeper() {
    go_.set_value();
    thread_.join();
  }
  pid_t thread = 0;

 private:
  std::promise<pid_t> who_;
  std::promise<void> go_;
  std::thread thread_;
};

const ThreadStack* Of(const std::vector<ThreadStack>& stacks, pid_t thread) {
  const auto found = std::ranges::find(stacks, thread, &ThreadStack::thread);
  return found == stacks.end() ? nullptr : &*found;
}

// Looked at again where a busy machine leaves this one without a turn for as long as it is given to
// answer.
std::vector<ThreadStack> StacksOnceItTells(pid_t thread) {
  std::vector<ThreadStack> stacks;
  for (int look = 0; look < 3; ++look) {
    stacks = StacksOfAllThreads();
    const ThreadStack* stack = Of(stacks, thread);
    if (stack != nullptr && !stack->frames.empty()) break;
  }
  return stacks;
}

TEST(ThreadStacks, EachThreadTellsWhereItStands) {
  const Sleeper waits(true);
  const std::vector<ThreadStack> stacks = StacksOnceItTells(waits.thread);
  const ThreadStack* stack = Of(stacks, waits.thread);
  ASSERT_NE(stack, nullptr);
  EXPECT_EQ(stack->name, "sleeper");
  ASSERT_GT(stack->frames.size(), 2u);
  EXPECT_TRUE(std::ranges::any_of(stack->frames, [](const std::string& frame) {
    return frame.starts_with("core_test+0x");
  })) << "this program's own code is on it";
}

TEST(ThreadStacks, WhoTakesNoSignalsHoldsNobodyUp) {
  const Sleeper deaf(false), waits(true);
  for (int i = 0; i < 2; ++i) {  // also after one that never answered
    const std::vector<ThreadStack> stacks = StacksOnceItTells(waits.thread);
    ASSERT_NE(Of(stacks, deaf.thread), nullptr);
    EXPECT_TRUE(Of(stacks, deaf.thread)->frames.empty());
    ASSERT_NE(Of(stacks, waits.thread), nullptr);
    EXPECT_FALSE(Of(stacks, waits.thread)->frames.empty());
  }
}

TEST(ThreadStacks, ThreadsThatComeAndGoMeanwhileDoNoHarm) {
  std::atomic<bool> done = false;
  std::thread crowd([&] {
    while (!done) std::thread([] {}).join();
  });
  for (int i = 0; i < 20; ++i) StacksOfAllThreads();
  done = true;
  crowd.join();
}

}  // namespace
}  // namespace denoised
