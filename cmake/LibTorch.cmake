# LibTorch from the unpacked torch wheel, as one imported target: denoised::torch.
#
# find_package(Torch) is not used: it turns the CUDA language on and links libtorch_cuda, which does
# not resolve where the wheel's CUDA dependencies are absent.
set(torch_root "${DENOISED_LIBTORCH}/torch")
if(NOT EXISTS "${torch_root}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch not found at ${torch_root}. Run deploy/setup.sh, or set "
                      "DENOISED_LIBTORCH to the folder that holds torch/ and nvidia/.")
endif()
file(GLOB nvidia_libs "${DENOISED_LIBTORCH}/nvidia/*/lib")
if(DENOISED_CUDA)
  file(GLOB cuda_wheel_libs "${DENOISED_CUDA_WHEELS}/nvidia/*/lib")
  list(APPEND nvidia_libs ${cuda_wheel_libs})
endif()

# Linking only: what a program needs whose own files do not see ATen.
add_library(denoised_torch_link INTERFACE)
add_library(denoised::torch_link ALIAS denoised_torch_link)
target_link_directories(denoised_torch_link INTERFACE "${torch_root}/lib")
target_link_options(denoised_torch_link INTERFACE
  "LINKER:--no-as-needed,-ltorch_cpu,-lc10,--as-needed"
  "LINKER:--allow-shlib-undefined"
  "LINKER:--disable-new-dtags,-rpath,${torch_root}/lib")
foreach(dir ${nvidia_libs})
  target_link_options(denoised_torch_link INTERFACE "LINKER:-rpath,${dir}")
endforeach()
if(DENOISED_CUDA)
  target_link_options(denoised_torch_link INTERFACE
    "LINKER:--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed")
endif()

# What the programs load of it, for an installation that carries its own.
file(GLOB DENOISED_TORCH_RUNTIME "${torch_root}/lib/libtorch_cpu.so" "${torch_root}/lib/libc10.so"
     "${torch_root}/lib/libgomp*" "${DENOISED_LIBTORCH}/nvidia/*/lib/libcudart.so*"
     "${DENOISED_LIBTORCH}/nvidia/*/lib/libcupti.so*")

add_library(denoised_torch INTERFACE)
add_library(denoised::torch ALIAS denoised_torch)
target_include_directories(denoised_torch SYSTEM INTERFACE "${torch_root}/include")
target_link_libraries(denoised_torch INTERFACE denoised_torch_link)

# at::parallel_for is a template over OpenMP pragmas: without this option it compiles to a plain loop.
# At run time the one libgomp is LibTorch's, found by the rpath. ThreadSanitizer does not see into it
# and would report its barriers, so there the loops stay plain, and the pragmas without threads in force.
if(NOT DENOISED_SANITIZE MATCHES "thread")
  target_compile_options(denoised_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_options(denoised_torch_link INTERFACE -fopenmp)
else()
  target_compile_options(denoised_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp-simd>)
endif()

# One precompiled header for everything that sees ATen. Targets reuse it with denoised_use_aten().
file(WRITE "${CMAKE_BINARY_DIR}/pch/aten_pch.cc.in" "namespace denoised {}\n")
configure_file("${CMAKE_BINARY_DIR}/pch/aten_pch.cc.in" "${CMAKE_BINARY_DIR}/pch/aten_pch.cc" COPYONLY)
add_library(denoised_aten_pch OBJECT "${CMAKE_BINARY_DIR}/pch/aten_pch.cc")
target_link_libraries(denoised_aten_pch PRIVATE denoised::torch)
target_precompile_headers(denoised_aten_pch PRIVATE <ATen/ATen.h> <memory> <optional> <string> <vector>)

function(denoised_use_aten target)
  target_link_libraries(${target} PRIVATE denoised::torch)
  # Programs would be compiled with -fPIE, and the header was not.
  target_compile_options(${target} PRIVATE -fPIC)
  target_precompile_headers(${target} REUSE_FROM denoised_aten_pch)
endfunction()
