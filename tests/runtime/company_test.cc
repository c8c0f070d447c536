#include "runtime/engine/company.h"

#include <gtest/gtest.h>

namespace denoised {
namespace {

using std::chrono::milliseconds;

const Company::Clock::time_point kEnd{std::chrono::hours(1)};  // of a forward

std::optional<Company::Clock::time_point> Until(Company* company, double gain,
                                                Company::Clock::time_point now) {
  return company->WaitUntil(gain, kEnd + std::chrono::hours(1), now);
}

TEST(CompanyTest, TheFirstOneBackWaitsForTheOthersAsLongAsThatPays) {
  Company company;
  EXPECT_EQ(company.Missing("a", 1), 0) << "nobody is known";
  EXPECT_FALSE(Until(&company, 1, kEnd));
  company.Answered({"a", 8}, 0.02, kEnd);
  EXPECT_EQ(company.Missing("a", 1), 7);
  EXPECT_EQ(company.Missing("a", 8), 0);
  EXPECT_EQ(company.Missing("a", 9), 0);
  EXPECT_EQ(company.Missing("b", 1), 0) << "who waits there is nobody's company";
  const auto first = kEnd + milliseconds(15);
  EXPECT_EQ(Until(&company, 0.004, first), first + milliseconds(4));
  EXPECT_EQ(Until(&company, 0.003, first + milliseconds(1)), first + milliseconds(3))
      << "from when the first came";
  EXPECT_FALSE(Until(&company, 0.003, first + milliseconds(3)));
  EXPECT_FALSE(Until(&company, -0.5, first)) << "all in one are slower";
}

TEST(CompanyTest, WaitsForNobodyElse) {
  Company company;
  company.Answered({"a", 3}, 0.02, kEnd);
  EXPECT_FALSE(Until(&company, 1, kEnd + milliseconds(41))) << "not on their way any more";
  company.Answered({"a", 3}, 0.02, kEnd);
  EXPECT_TRUE(Until(&company, 1, kEnd + milliseconds(39)));
  company.Leave();
  EXPECT_FALSE(Until(&company, 1, kEnd)) << "something else ran";
  EXPECT_EQ(company.Missing("a", 1), 0);
}

TEST(CompanyTest, NeverWaitsLong) {
  Company company;
  company.Answered({"a", 2}, 100, kEnd);
  EXPECT_EQ(Until(&company, 90, kEnd), kEnd + milliseconds(50));
}

TEST(CompanyTest, WaitsNoLongerThanItMay) {
  Company company;
  company.Answered({"a", 2}, 0.02, kEnd);
  EXPECT_EQ(company.WaitUntil(1, kEnd + milliseconds(7), kEnd), kEnd + milliseconds(7));
  EXPECT_EQ(company.WaitUntil(1, kEnd + milliseconds(9), kEnd + milliseconds(5)),
            kEnd + milliseconds(9));
  EXPECT_FALSE(company.WaitUntil(1, kEnd - milliseconds(1), kEnd));
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
