#include "server/descriptors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>

namespace denoised {
namespace {

TEST(Descriptors, WhatFitsIsLeftAsItWasWanted) {
  const ConnectionCaps caps = FitCaps({}, 524288);
  EXPECT_EQ(caps.listen, ConnectionCaps().listen);
  EXPECT_EQ(caps.http, ConnectionCaps().http);
  EXPECT_EQ(caps.admin, ConnectionCaps().admin);
}

TEST(Descriptors, TogetherTheyStayBelowTheLimitAndNobodyIsLeftOut) {
  for (const int64_t limit : {40, 60, 100, 256, 1024, 4096, 1 << 20}) {
    for (const int64_t wanted : {8, 100, 1000000}) {
      const ConnectionCaps caps = FitCaps({wanted, 32, wanted}, limit);
      EXPECT_LE(caps.listen + caps.http + caps.admin, limit - std::min<int64_t>(128, limit / 2))
          << limit << " " << wanted;
      EXPECT_GE(caps.listen, 4);
      EXPECT_GE(caps.admin, 4);
      EXPECT_GE(caps.http, 8);
      EXPECT_LE(caps.listen, wanted);
      EXPECT_LE(caps.http, wanted);
    }
  }
}

TEST(Descriptors, TheSoftLimitIsRaisedToTheHardOne) {
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit low = before;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_GE(RaiseDescriptorLimit(), 64);
  rlimit after{};
  getrlimit(RLIMIT_NOFILE, &after);
  EXPECT_EQ(after.rlim_cur, after.rlim_max);
  setrlimit(RLIMIT_NOFILE, &before);
}

}  // namespace
}  // namespace denoised
