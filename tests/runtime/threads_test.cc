#include "runtime/threads.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <thread>

#include "backends/intra_op.h"

namespace denoised {
namespace {

TEST(PassingThreadTest, RunsElsewhereWithItsOwnThreadsAndThrowsWhatIsThrownThere) {
  std::thread::id where;
  for (const int threads : {1, 2}) {
    int of_its_own = 0;
    RunOnPassingThread(threads, [&] {
      where = std::this_thread::get_id();
      of_its_own = IntraOpThreads();
    });
    EXPECT_NE(where, std::this_thread::get_id());
    EXPECT_EQ(of_its_own, threads);
  }
  // Neither the caller's number changes nor that which a later thread begins with.
  const int before = IntraOpThreads();
  SetIntraOpThreads(3);
  RunOnPassingThread(1, [] {});
  EXPECT_EQ(IntraOpThreads(), 3);
  std::thread([] {
    SetIntraOpThreads(0);
    EXPECT_EQ(IntraOpThreads(), 3);
  }).join();
  SetIntraOpThreads(before);
  try {
    RunOnPassingThread(1, [] { throw std::runtime_error("from there"); });
    ADD_FAILURE() << "nothing came";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), std::string("from there"));
  }
}

}  // namespace
}  // namespace denoised
