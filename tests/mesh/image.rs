//! Container images: the machine's own files, below those that the image's programs need.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use testkit::program;

use super::node::Node;

/// What an image adds to the machine's root file system, and what its containers run.
pub struct Image {
    layer: PathBuf,
    /// Put before a container's arguments, if the container has no command of its own.
    pub entrypoint: Option<&'static str>,
    /// Directories of the machine that all containers share.
    shared: Mutex<Vec<PathBuf>>,
}

/// The images of a mesh.
pub struct Images {
    proxy: Image,
    pilot: Image,
    ca: Image,
    application: Image,
}

impl Images {
    /// Copies the programs of all images. `token` is a directory of softhsm/init.sh, which istio-hsm-ca's containers see
    /// as if it were a vendor's client that is installed in the image.
    pub fn new(node: &Node) -> Self {
        let istio = node.istio.join("bin");
        let proxy = Image::new("proxy", Some("/usr/local/bin/pilot-agent"));
        proxy.add(&istio.join("pilot-agent"), "usr/local/bin/pilot-agent");
        proxy.add(&istio.join("envoy"), "usr/local/bin/envoy");
        let bootstrap = "var/lib/istio/envoy/envoy_bootstrap_tmpl.json";
        proxy.add(&node.istio.join("envoy_bootstrap_tmpl.json"), bootstrap);
        let pilot = Image::new("pilot", Some("/usr/local/bin/pilot-discovery"));
        pilot.add(&istio.join("pilot-discovery"), "usr/local/bin/pilot-discovery");
        // As deploy/image/Containerfile.
        let ca = Image::new("ca", Some("/usr/bin/istio-hsm-ca"));
        for name in ["istio-hsm-ca", "istio-hsm-ca-token-host"] {
            ca.add(&program(name), &format!("usr/bin/{name}"));
        }
        let application = Image::new("application", None);
        application.add(&istio.join("traffic"), "usr/local/bin/traffic");
        Self { proxy, pilot, ca, application }
    }

    /// Makes the token in a directory available in istio-hsm-ca's containers.
    pub fn install_token(&self, directory: &Path) {
        self.ca.add(&directory.join("softhsm2.conf"), "etc/softhsm/softhsm2.conf");
        let mut shared = self.ca.shared.lock().unwrap();
        if !shared.iter().any(|each| each == directory) {
            shared.push(directory.to_owned());
        }
    }

    /// The image with this name.
    pub fn find(&self, name: &str) -> &Image {
        let repository = name.rsplit('/').next().unwrap().split([':', '@']).next().unwrap();
        match repository {
            "proxyv2" => &self.proxy,
            "pilot" => &self.pilot,
            "istio-hsm-ca" => &self.ca,
            "traffic" => &self.application,
            _ => panic!("there is no image {name}"),
        }
    }
}

impl Image {
    fn new(name: &str, entrypoint: Option<&'static str>) -> Self {
        let layer = PathBuf::from(format!("/run/mesh/images/{name}"));
        fs::create_dir_all(&layer).unwrap();
        Self { layer, entrypoint, shared: Mutex::default() }
    }

    fn add(&self, from: &Path, to: &str) {
        let to = self.layer.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }

    /// Mounts a writable copy at `root`.
    pub fn mount(&self, root: &Path) {
        let part = |name: &str| {
            let path = root.with_extension(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        fs::create_dir_all(root).unwrap();
        let options = format!(
            "lowerdir={}:/,upperdir={},workdir={}",
            self.layer.display(),
            part("upper").display(),
            part("work").display()
        );
        mount(&["-t", "overlay", "-o", &options, "overlay", root.to_str().unwrap()]);
        for system in ["proc", "dev", "sys"] {
            bind(Path::new("/").join(system).as_path(), &root.join(system));
        }
        for directory in self.shared.lock().unwrap().iter() {
            bind(directory, &root.join(directory.strip_prefix("/").unwrap()));
        }
    }
}

/// Makes a file or directory visible in another place as well.
pub fn bind(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if !to.exists() {
            fs::write(to, "").unwrap();
        }
    }
    mount(&["--rbind", from.to_str().unwrap(), to.to_str().unwrap()]);
}

/// Mounts an empty directory at a new place.
pub fn mount_memory(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    mount(&["-t", "tmpfs", "tmpfs", directory.to_str().unwrap()]);
}

/// Ends a mount and all mounts below it, also those in use.
pub fn unmount(root: &Path) {
    super::node::run("umount", &["--recursive", "--lazy", root.to_str().unwrap()]);
}

fn mount(arguments: &[&str]) {
    super::node::run("mount", arguments);
}
