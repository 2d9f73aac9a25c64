# find_package(tr_mmap 0.1) accepts this version: the same major number, the same minor one while the major one is 0, and
# no older version than was asked for.
set(PACKAGE_VERSION "0.1.0")

set(PACKAGE_VERSION_COMPATIBLE FALSE)
set(PACKAGE_VERSION_EXACT FALSE)
string(REGEX MATCH "^0\\.[0-9]+|^[1-9][0-9]*" _tr_mmap_series "${PACKAGE_VERSION}")
if(PACKAGE_FIND_VERSION_COUNT EQUAL 1)
  string(REGEX MATCH "^[0-9]+" _tr_mmap_series "${PACKAGE_VERSION}")
endif()
if("${PACKAGE_FIND_VERSION}." MATCHES "^${_tr_mmap_series}\\." AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
