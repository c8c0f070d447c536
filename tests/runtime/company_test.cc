#include "runtime/engine/company.h"

#include <gtest/gtest.h>

namespace denoised {
namespace {

using std::chrono::milliseconds;

const Company::Clock::time_point kEnd{std::chrono::hours(1)};  // of a forward

TEST(CompanyTest, TheFirstOneBackWaitsForTheOthersAsLongAsThatPays) {
  Company company;
  EXPECT_FALSE(company.WaitUntil(1, 1, kEnd)) << "nobody is known";
  company.Answered(8, 0.02, kEnd);
  const auto first = kEnd + milliseconds(15);
  EXPECT_EQ(company.WaitUntil(1, 0.004, first), first + milliseconds(4));
  EXPECT_EQ(company.WaitUntil(5, 0.003, first + milliseconds(1)), first + milliseconds(3))
      << "from when the first came";
  EXPECT_FALSE(company.WaitUntil(5, 0.003, first + milliseconds(3)));
  EXPECT_FALSE(company.WaitUntil(1, -0.5, first)) << "all in one are slower";
}

TEST(CompanyTest, WaitsForNobodyElse) {
  Company company;
  company.Answered(3, 0.02, kEnd);
  EXPECT_FALSE(company.WaitUntil(3, 1, kEnd)) << "all are there";
  EXPECT_FALSE(company.WaitUntil(4, 1, kEnd));
  EXPECT_FALSE(company.WaitUntil(1, 1, kEnd + milliseconds(41))) << "not on their way any more";
  company.Answered(3, 0.02, kEnd);
  EXPECT_TRUE(company.WaitUntil(1, 1, kEnd + milliseconds(39)));
  company.Leave();
  EXPECT_FALSE(company.WaitUntil(1, 1, kEnd)) << "something else ran";
}

TEST(CompanyTest, NeverWaitsLong) {
  Company company;
  company.Answered(2, 100, kEnd);
  EXPECT_EQ(company.WaitUntil(1, 90, kEnd), kEnd + milliseconds(50));
}

// A lone caller, or one whose company left, is not held up from then on.
TEST(CompanyTest, WhoIsAnsweredAloneIsAlone) {
  Company company;
  company.Answered(2, 0.02, kEnd);
  company.Answered(1, 0.01, kEnd + milliseconds(30));
  EXPECT_FALSE(company.WaitUntil(1, 1, kEnd + milliseconds(31)));
}

}  // namespace
}  // namespace denoised
