// WORKSPACE_PATH/pytorch_session has the sessions that are open, once a program has asked for it; else there is no such
// directory.
#include "tech_renaissance.h"
using namespace tr;

int main() {
    const std::string root = std::getenv("TR_WORKSPACE");
    const auto has = [&](const std::string& id) {
        return std::filesystem::exists(root + "/pytorch_session/tr_session_" + id + "/session.json");
    };
    {
        PyTorchSession first("default", "links_1", true);
        first.start();
        std::cout << has("links_1") << std::endl;
        if (std::string(WORKSPACE_PATH) != root) return 1;
        std::cout << has("links_1") << std::endl;
        {
            PyTorchSession second("default", "links_2", true);
            second.start(60000);
            second.terminate();
            second.start();
            std::cout << has("links_2") << std::endl;
        }
        std::cout << (has("links_1") && !has("links_2")) << std::endl;
    }
    std::cout << std::filesystem::exists(root + "/pytorch_session") << std::endl;
    return 0;
}
