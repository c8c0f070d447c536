# Writes the source file of runtime/version.h. Runs at each build, as a script of its own, and touches
# the file only where the text changed: a commit compiles one file anew.
#
#   cmake -DSOURCE=DIR -DVERSION=X.Y.Z -DCOMMIT=HEX -DOUTPUT=FILE -P Version.cmake
#
# COMMIT says which commit it is where the sources are not a checkout (a container's build stage); empty
# asks git, whose answer counts only where SOURCE itself is the checkout and not a folder inside one.
cmake_minimum_required(VERSION 3.25)
if(NOT COMMIT)
  find_package(Git QUIET)
  if(GIT_FOUND)
    execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --show-prefix WORKING_DIRECTORY "${SOURCE}"
      OUTPUT_VARIABLE inside RESULT_VARIABLE failed ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(NOT failed AND inside STREQUAL "")
      execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --short=12 HEAD WORKING_DIRECTORY "${SOURCE}"
        OUTPUT_VARIABLE COMMIT ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
      execute_process(COMMAND "${GIT_EXECUTABLE}" diff --quiet HEAD -- backends runtime server proto cmake
        WORKING_DIRECTORY "${SOURCE}" RESULT_VARIABLE changed OUTPUT_QUIET ERROR_QUIET)
      if(COMMIT AND NOT changed EQUAL 0)
        string(APPEND COMMIT ".dirty")
      endif()
    endif()
  endif()
endif()
if(COMMIT)
  string(APPEND VERSION "+${COMMIT}")
endif()
file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT
"#include \"runtime/version.h\"

namespace denoised {

std::string Version() { return \"@VERSION@\"; }

}  // namespace denoised
")
