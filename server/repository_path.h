// Where the models are when nobody says it.
#ifndef DENOISED_SERVER_REPOSITORY_PATH_H_
#define DENOISED_SERVER_REPOSITORY_PATH_H_

#include <filesystem>
#include <string>

namespace denoised {

// "model_repository" where the working folder has one, else the folder that `cmake --install` puts
// beside the programs: ../share/denoised/model_repository from the program's own. Throws NOT_FOUND
// that says where it looked and what to do.
std::string FindModelRepository();

// The same for a given working folder and a given program.
std::string FindModelRepository(const std::filesystem::path& working_folder,
                                const std::filesystem::path& program);

}  // namespace denoised

#endif  // DENOISED_SERVER_REPOSITORY_PATH_H_
