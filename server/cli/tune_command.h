// What measurements say, for people.
#ifndef DENOISED_SERVER_CLI_TUNE_COMMAND_H_
#define DENOISED_SERVER_CLI_TUNE_COMMAND_H_

#include <string>

#include "denoised/v1/admin.pb.h"

namespace denoised::cli {

// One sentence: the row that an automatic choice rests on, or that there is none.
std::string MeasuredText(const v1::MeasuredChoice& measured);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_TUNE_COMMAND_H_
