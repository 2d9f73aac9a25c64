# find_package(tr_mmap) gives the target tr_mmap::tr_mmap: headers, C++17, and the threads library.
#
# Its options are the original framework's. TR_BUILD_PYTHON_SESSION and TR_BUILD_PYTORCH_SESSION are ON, and the target
# defines the macro of that name. Where one is OFF, tech_renaissance.h leaves that session out.
#
# This file is in the Python package (tr_mmap/cpp/cmake), beside the headers (tr_mmap/cpp/include). It is installed a
# second time to share/cmake/tr_mmap of the Python environment: find_package looks there if the environment is active or
# named in CMAKE_PREFIX_PATH. For that copy the headers are in the environment's site-packages, or, if the package is
# installed for editing, where "tr-mmap include" says.
include(CMakeFindDependencyMacro)
find_dependency(Threads)

get_filename_component(_tr_mmap_include "${CMAKE_CURRENT_LIST_DIR}/../include" ABSOLUTE)
if(NOT EXISTS "${_tr_mmap_include}/tr_mmap/tr_mmap.hpp")
  get_filename_component(_tr_mmap_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  file(GLOB _tr_mmap_headers "${_tr_mmap_prefix}/lib/python3*/*-packages/tr_mmap/cpp/include/tr_mmap/tr_mmap.hpp")
  if(_tr_mmap_headers)
    list(GET _tr_mmap_headers 0 _tr_mmap_header)
    get_filename_component(_tr_mmap_include "${_tr_mmap_header}/../.." ABSOLUTE)
  else()
    unset(_tr_mmap_program CACHE)  # else a second environment would get the first one's
    find_program(_tr_mmap_program tr-mmap HINTS "${_tr_mmap_prefix}/bin")
    if(_tr_mmap_program)
      execute_process(COMMAND "${_tr_mmap_program}" include OUTPUT_VARIABLE _tr_mmap_include
                      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endif()
endif()
if(NOT EXISTS "${_tr_mmap_include}/tr_mmap/tr_mmap.hpp")
  set(tr_mmap_FOUND FALSE)
  set(tr_mmap_NOT_FOUND_MESSAGE "the headers of tr_mmap are not beside its CMake package, and tr-mmap does not run")
  return()
endif()

option(TR_BUILD_PYTHON_SESSION "Have tr::PythonSession in tech_renaissance.h" ON)
option(TR_BUILD_PYTORCH_SESSION "Have tr::PyTorchSession in tech_renaissance.h" ON)
set(_tr_mmap_definitions "")
foreach(_tr_mmap_session PYTHON PYTORCH)
  if(TR_BUILD_${_tr_mmap_session}_SESSION)
    list(APPEND _tr_mmap_definitions TR_BUILD_${_tr_mmap_session}_SESSION=1)
  else()
    list(APPEND _tr_mmap_definitions TR_WITHOUT_${_tr_mmap_session}_SESSION=1)
  endif()
endforeach()

if(NOT TARGET tr_mmap::tr_mmap)
  add_library(tr_mmap::tr_mmap INTERFACE IMPORTED)
  set_target_properties(tr_mmap::tr_mmap PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_tr_mmap_include}"
    INTERFACE_COMPILE_DEFINITIONS "${_tr_mmap_definitions}"
    INTERFACE_COMPILE_FEATURES cxx_std_17
    INTERFACE_LINK_LIBRARIES Threads::Threads)
endif()
set(tr_mmap_INCLUDE_DIR "${_tr_mmap_include}")
