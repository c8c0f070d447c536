#include "runtime/engine/company.h"

#include <gtest/gtest.h>

namespace denoised {
namespace {

using std::chrono::milliseconds;

const Company::Clock::time_point kEnd{std::chrono::hours(1)};  // of a forward

TEST(CompanyTest, TheFirstOneBackWaitsForTheOthersAsLongAsThatPays) {
  Company company;
  EXPECT_EQ(company.Missing("a", 1), 0) << "nobody is known";
  EXPECT_FALSE(company.WaitUntil(1, kEnd));
  company.Answered({"a", 8}, 0.02, kEnd);
  EXPECT_EQ(company.Missing("a", 1), 7);
  EXPECT_EQ(company.Missing("a", 8), 0);
  EXPECT_EQ(company.Missing("a", 9), 0);
  EXPECT_EQ(company.Missing("b", 1), 0) << "who waits there is nobody's company";
  const auto first = kEnd + milliseconds(15);
  EXPECT_EQ(company.WaitUntil(0.004, first), first + milliseconds(4));
  EXPECT_EQ(company.WaitUntil(0.003, first + milliseconds(1)), first + milliseconds(3))
      << "from when the first came";
  EXPECT_FALSE(company.WaitUntil(0.003, first + milliseconds(3)));
  EXPECT_FALSE(company.WaitUntil(-0.5, first)) << "all in one are slower";
}

TEST(CompanyTest, WaitsForNobodyElse) {
  Company company;
  company.Answered({"a", 3}, 0.02, kEnd);
  EXPECT_FALSE(company.WaitUntil(1, kEnd + milliseconds(41))) << "not on their way any more";
  company.Answered({"a", 3}, 0.02, kEnd);
  EXPECT_TRUE(company.WaitUntil(1, kEnd + milliseconds(39)));
  company.Leave();
  EXPECT_FALSE(company.WaitUntil(1, kEnd)) << "something else ran";
  EXPECT_EQ(company.Missing("a", 1), 0);
}

TEST(CompanyTest, NeverWaitsLong) {
  Company company;
  company.Answered({"a", 2}, 100, kEnd);
  EXPECT_EQ(company.WaitUntil(90, kEnd), kEnd + milliseconds(50));
}

// A lone caller, or one whose company left, is not held up from then on.
TEST(CompanyTest, WhoIsAnsweredAloneIsAlone) {
  Company company;
  company.Answered({"a", 2}, 0.02, kEnd);
  company.Answered({"a", 1}, 0.01, kEnd + milliseconds(30));
  EXPECT_EQ(company.Missing("a", 1), 0);
}

}  // namespace
}  // namespace denoised
